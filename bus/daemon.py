"""The broker as a process: start it once, find it, stop it.

What runs stands in a published record and is believed only while pid and start time agree. Of any number
of callers at once one starts a broker, and the broker's own lock on the state directory has the last word.
The child runs in a session of its own, inherits no descriptor, and takes its code from beside this file:
neither the caller's folder nor PYTHONPATH can put a package named bus or agent in its way.

Must not know sockets, the protocol or what the broker does.
"""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bus import joined
from bus.config import Home
from bus.errors import LocalError, Unreachable
from bus.private import private_dir, write_private
from bus.processes import FileLock, alive, holder

SPAWNED = "TALKBUS_SPAWNED"

_STOPPED = "the bus was stopped with 'talkbus down' (start it with 'talkbus up')"
_ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.02
_LOG_LIMIT = 5 * 1024 * 1024  # octets; one older log is kept
_DROPPED = ("CLAUDE", "ANTHROPIC")  # what a session was told, and its credentials, are not for a daemon

# For a source checkout that is not installed. An installed talkbus needs no help to be found.
_FROM_CHECKOUT = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('talkbus', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True)
class Record:
    """A running broker: process, what it really bound, its public key and version."""

    pid: int
    start: str
    router: str
    xpub: str
    key: str
    version: str


def publish(home: Home, record: Record) -> None:
    """Tell everybody on this machine where the broker is. Called by the broker, once bound."""
    data = json.dumps(asdict(record), indent=1).encode("utf-8") + b"\n"
    for path in _records(home):
        private_dir(path.parent)
        write_private(path, data)


def unpublish(home: Home, record: Record) -> None:
    """Take the record back, if it is still this broker's."""
    for path in _records(home):
        if _read_record(path) == record:
            path.unlink(missing_ok=True)


def published(home: Home) -> Record | None:
    """The running broker; None when nothing usable is published or its process is gone."""
    for path in _believed(home):
        record = _read_record(path)
        if record and alive(record.pid, record.start):
            return record
    return None


def ensure_broker(home: Home, timeout: float = 10.0) -> Record:
    """The running broker, started if there is none; within `timeout` seconds.

    Unreachable when it was stopped on purpose, when this machine has joined a hub, or when it did not come up, with
    the last line of its log.
    """
    return _ensure(home, timeout, broker_command())


def stop_broker(home: Home, timeout: float = 10.0) -> bool:
    """Stop the broker and leave the mark that keeps it stopped; True when one was running.

    It gets `timeout` seconds to close in good order, then it is killed. LocalError when that is not ours to do.
    """
    private_dir(home.state)
    write_private(home.stop_mark, b"")
    target = _running(home)
    if target is None:
        return False
    kill = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL
    for number in (signal.SIGTERM, kill):
        _signal(target, number)
        if _gone(target, timeout):
            for path in _records(home):
                record = _read_record(path)
                if record and (record.pid, record.start) == target:
                    path.unlink(missing_ok=True)
            return True
    raise LocalError(f"process {target[0]} does not end (see {_log_file(home)})")


def stopped(home: Home) -> bool:
    """Whether the bus was stopped on purpose."""
    return home.stop_mark.exists()


def clear_stop(home: Home) -> None:
    """Let the bus start again. Only `talkbus up`, called by a person, does this."""
    home.stop_mark.unlink(missing_ok=True)


def spawned(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this broker was started by `ensure_broker`; then it leaves the stop mark and obeys it."""
    return bool(environ.get(SPAWNED))


def refuse_a_second(home: Home) -> None:
    """LocalError when a broker runs here already, or is on its way up or down."""
    running = _running(home)
    if running is not None:
        raise LocalError(f"the bus runs already, as process {running[0]} (talkbus status; talkbus down ends it)")


def broker_command(root: Path = _ROOT) -> list[str]:
    """The command line that runs the broker whose code lies in `root`, from any folder."""
    python = [sys.executable, "-P"]
    installed = {Path(place).resolve() for place in (*site.getsitepackages(), site.getusersitepackages())}
    if root in installed:
        return [*python, "-m", "talkbus", "up", "--foreground"]
    return [*python, "-c", _FROM_CHECKOUT, str(root), "up", "--foreground"]


def _records(home: Home) -> tuple[Path, ...]:
    # A runtime directory may be removed at log-out, or differ between two logins, while the broker lives on:
    # the copy beside the lock is found by whoever shares the broker.
    return (home.record, home.state / home.record.name)


def _believed(home: Home) -> tuple[Path, ...]:
    # The platform's runtime directory is one for all HOMEs of a user: what stands there may be another bus's, and
    # 'down' would end that. The copy in the state directory is this one's for certain.
    return _records(home) if home.root else _records(home)[1:]


def _read_record(path: Path) -> Record | None:
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    wanted = {"pid": int, "start": str, "router": str, "xpub": str, "key": str, "version": str}
    if not isinstance(fields, dict) or any(type(fields.get(name)) is not kind for name, kind in wanted.items()):
        return None
    return Record(**{name: fields[name] for name in wanted})


def _running(home: Home) -> tuple[int, str] | None:
    """Pid and start of the broker, one still on its way up included."""
    record = published(home)
    return (record.pid, record.start) if record else holder(home.lock)


def _ensure(home: Home, timeout: float, command: Sequence[str]) -> Record:
    record = published(home)
    if record:
        return record
    _may_start(home)
    private_dir(home.state)
    deadline = time.monotonic() + timeout
    # A hundred sessions that lose their broker at once shall start one process and not a hundred.
    starter = FileLock(home.state / "start.lock")
    child: subprocess.Popen[bytes] | None = None
    since = 0
    try:
        while True:
            # In this order: what a child published before it ended must not be missed.
            code = child.poll() if child else None
            record = published(home)
            if record:
                return record
            _may_start(home)
            if code:
                said = _last_line(_log_file(home), since)
                raise Unreachable(f"the broker ended with {code}: {said} (see {_log_file(home)})")
            if time.monotonic() >= deadline:
                raise Unreachable(f"no broker after {timeout:g} s{_who(home)} (see {_log_file(home)})")
            if code == 0:
                child = None  # it found the lock held; if that holder is gone by now, another is needed
            if child is None and holder(home.lock) is None and starter.acquire() and not published(home):
                child, since = _spawn(home, command)
            time.sleep(_POLL_S)
    finally:
        starter.release()


def _may_start(home: Home) -> None:
    if stopped(home):
        raise Unreachable(_STOPPED)
    hub = joined.joined(home)
    if hub is not None:
        raise Unreachable(f"this machine uses the hub at {hub.where} and runs no broker (talkbus lan leave)")


def _who(home: Home) -> str:
    busy = holder(home.lock)
    return f", though process {busy[0]} holds {home.lock}" if busy else ""


def _spawn(home: Home, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the broker detached; returns it with the size of the log before its first word."""
    private_dir(home.logs)
    log = _log_file(home)
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        os.replace(log, log.with_name(log.name + ".1"))
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        since = os.fstat(handle).st_size
        child = _detached(command, home, handle)
    except OSError as error:
        raise Unreachable(f"cannot start {command[0]}: {error.strerror} (install talkbus again)") from error
    finally:
        os.close(handle)
    # Who waits for nothing leaves a zombie, for as long as the calling session lives.
    threading.Thread(target=child.wait, name="broker-reaper", daemon=True).start()
    return child, since


def _detached(command: Sequence[str], home: Home, log: int) -> subprocess.Popen[bytes]:
    environ = _environment(home, os.environ)
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home.state,
            env=environ,
            creationflags=flags,
        )
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=home.state,
        env=environ,
        start_new_session=True,
        umask=0o077,  # SQLite makes its files by the umask
    )


def _environment(home: Home, environ: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in environ.items()
        if not name.upper().startswith(_DROPPED) and name not in ("PYTHONPATH", "TALKBUS_HOME")
    }
    if home.root:
        kept["TALKBUS_HOME"] = str(home.root)  # absolute, for the child runs in another folder
    return kept | {SPAWNED: "1"}


def _log_file(home: Home) -> Path:
    return home.logs / "broker.log"


def _last_line(path: Path, since: int) -> str:
    """The last line written after octet `since`, fit for a terminal, at most 200 characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return "".join(c if c.isprintable() else "?" for c in last)[:200]


def _signal(target: tuple[int, str], number: signal.Signals) -> None:
    if not alive(*target):
        return
    try:
        with suppress(ProcessLookupError):
            os.kill(target[0], number)
    except PermissionError as error:
        raise LocalError(f"process {target[0]} is not yours to stop (ask its owner)") from error


def _gone(target: tuple[int, str], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while alive(*target):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True
