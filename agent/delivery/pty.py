"""A program in a pseudo-terminal of ours, into which a waiting message is typed when nobody else types.

Bytes go through untouched both ways, window size and signals are handed on, and the program's end is ours. What is
to be typed comes from the `pty` box of the program's maildir: pasted as it is where the program takes pastes, else
only a notice of one line, for there every line of a message would be a command of its own.

`Typist` decides, and is pure: `now` is ms of a steady clock. Must not know messages nor the bus.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.delivery import clientfile
from agent.delivery.maildir import Box, Maildir, body
from bus import processes
from bus.errors import ConfigError

STILL_MS = 500  # the keyboard, before anything is typed
QUIET_MS = 1000  # the output of a program that does not say whether it is idle
SETTLE_MS = 2000  # after something was typed: the status needs a moment to say busy
LOOK_MS = 200
BOX_VARIABLE = "TALKBUS_PTY"  # for the agent below us, who may have shims above it
MEND = "run 'claude' itself, messages then come by the other paths"

_MODE = re.compile(rb"\x1b\[\?([0-9;]{1,40})([hl])")
_TAIL = 48  # octets of output kept, for a sequence that comes in two pieces
_KEYS = re.compile(
    rb"\x1b\[200~.*?(?:\x1b\[201~|$)"  # a paste
    rb"|\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|\x1b[\]P_^X].*?(?:\x07|\x1b\\|$)|\x1b.|\x1b",
    re.DOTALL,
)


@dataclass(slots=True)
class Typist:
    """When to type. Tell it what happens; ask `may`."""

    reads_status: bool = False  # the program says whether it is idle
    key_at: int = -(10**9)
    output_at: int = -(10**9)
    typed_at: int = -(10**9)
    draft: int = 0  # characters that seem to stand in the input line, unsent
    status: str = ""
    modes: set[int] = field(default_factory=set)  # private modes of the terminal that are on
    _rest: bytes = b""

    def keys(self, now: int, data: bytes) -> None:
        """The person typed. What the terminal answers by itself comes here too, and only counts as a key."""
        self.key_at = now
        *sent, line = re.split(rb"[\r\n\x03\x04\x15]", _KEYS.sub(self._sequence, data))
        if sent:
            self.draft = 0
        for octet in line:
            if octet in (0x08, 0x7F):
                self.draft = max(0, self.draft - 1)
            elif octet >= 0x20 and octet & 0xC0 != 0x80:
                self.draft += 1

    @staticmethod
    def _sequence(found: re.Match[bytes]) -> bytes:
        paste = found[0].startswith(b"\x1b[200~") and found[0] not in (b"\x1b[200~", b"\x1b[200~\x1b[201~")
        return b"x" if paste else b""

    def output(self, now: int, data: bytes) -> None:
        """The program wrote."""
        self.output_at = now
        text = self._rest + data
        for found in _MODE.finditer(text):
            for number in found[1].split(b";"):
                if number:
                    (self.modes.add if found[2] == b"h" else self.modes.discard)(int(number))
        # Sets are safe to apply twice, so what may be half a sequence is simply looked at again.
        start = text.rfind(b"\x1b", -_TAIL)
        self._rest = text[start:] if start >= 0 and not _MODE.match(text, start) else b""

    def says(self, status: str) -> None:
        """The program's own status. A turn that begins has taken what stood in the input line."""
        if status == "busy" and self.status != "busy":
            self.draft = 0
        self.status = status
        self.reads_status = self.reads_status or bool(status)

    def may(self, now: int) -> bool:
        """Whether something may be typed now: idle, nobody types, and nothing unsent stands there."""
        if now - self.key_at < STILL_MS or now - self.typed_at < SETTLE_MS or self.draft:
            return False
        if self.reads_status:
            return self.status in ("idle", "shell")
        return now - self.output_at >= QUIET_MS

    @property
    def pastes(self) -> bool:
        return 2004 in self.modes

    def typed(self, now: int) -> None:
        """Something of ours was typed."""
        self.typed_at = now


def pasted(text: str) -> bytes:
    """A text as a bracketed paste, and Enter. No control character in it can end the paste or press a key."""
    clean = "".join(
        c for c in text.replace("\r\n", "\n") if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160)
    )
    return b"\x1b[200~" + clean.encode("utf-8", "replace") + b"\x1b[201~\r"


def notice(count: int) -> bytes:
    """One line that says that something waits, and Enter."""
    what = "a message" if count == 1 else f"{count} messages"
    return f"talkbus: {what} for this session; to read: talkbus inbox\r".encode("ascii")


def box_above(client: int, environ: dict[str, str]) -> Box | None:
    """The box of the supervisor in whose terminal the client `client` runs; None without one.

    A client below another client inherits the variable and is not meant: then a session file stands in between.
    """
    named = environ.get(BOX_VARIABLE, "")
    box = Path(named)
    owner = box.parent.name.partition("-")[0]
    if not named or not owner.isdecimal() or not supervised(Box(box)):
        return None
    if int(owner) == client:
        return Box(box)
    config = clientfile.config_dir(environ)
    for above in processes.ancestors(client):
        if clientfile.read(above, config) is not None:
            return None
        if above == int(owner):
            return Box(box)
    return None


def attach(box: Box, client: int) -> None:
    """For the agent: say which process below the supervisor is the client, whose status counts."""
    (box.path / "client").write_text(f"{client}\n", "ascii")


def supervised(box: Box) -> bool:
    """Whether a living supervisor looks into this box."""
    try:
        pid, start = (box.path / "owner").read_text("ascii").split()
        return processes.alive(int(pid), start)
    except (OSError, ValueError):
        return False


if sys.platform == "win32":

    def run(command: Sequence[str], maildirs: Path, environ: dict[str, str]) -> int:
        """Not here: ConfigError."""
        raise ConfigError(f"this system has no pseudo-terminals ({MEND})")

else:
    import fcntl
    import pty
    import termios
    import tty

    def run(command: Sequence[str], maildirs: Path, environ: dict[str, str]) -> int:
        """Run a program in a pseudo-terminal over this one until it ends; its exit code, 128 + n for signal n.

        ConfigError, with the mend, when this is no terminal or there is none to be had. In the main thread.
        """
        if not (os.isatty(0) and os.isatty(1)):
            raise ConfigError(f"input and output have to be a terminal ({MEND})")
        return _Supervisor(maildirs, environ).run(command)

    class _Supervisor:
        """The loop around one child."""

        def __init__(self, maildirs: Path, environ: dict[str, str]) -> None:
            self._maildirs = maildirs
            self._environ = environ
            self._typist = Typist()
            self._box: Box | None = None
            self._pid = 0
            self._master = -1
            self._to_child = bytearray()
            self._looked = 0
            self._input = True

        def run(self, command: Sequence[str]) -> int:
            self._typist.reads_status = os.path.basename(command[0]).startswith("claude")
            before = termios.tcgetattr(0)
            self._start(command, before)
            wake, signalled = os.pipe()
            os.set_blocking(signalled, False)
            os.set_blocking(wake, False)
            self._listen(signalled)
            code = 1  # what an exception leaves; the program, without its terminal, gets SIGHUP
            try:
                tty.setraw(0, termios.TCSAFLUSH)
                code = self._loop(wake, before)
            finally:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
                self._leave(code)
                signal.set_wakeup_fd(-1)
                for handle in (self._master, wake, signalled):
                    os.close(handle)
            return code

        def _start(self, command: Sequence[str], modes: list[Any]) -> None:
            # The child waits on this pipe until its box is there: the box has its pid in the name.
            ready, go = os.pipe()
            try:
                self._pid, self._master = pty.fork()
            except OSError as error:
                raise ConfigError(f"no pseudo-terminal is to be had: {error.strerror} ({MEND})") from error
            if self._pid == 0:
                self._become(command, ready, go, modes)
            os.close(ready)
            self._resize()
            self._open_box()
            os.write(go, str(self._box.path if self._box else "").encode())
            os.close(go)
            os.set_blocking(self._master, False)

        def _become(self, command: Sequence[str], ready: int, go: int, modes: list[Any]) -> None:
            """In the child. Never returns."""
            try:
                os.close(go)
                termios.tcsetattr(0, termios.TCSANOW, modes)
                box = os.read(ready, 4096).decode()
                os.close(ready)
                environ = {**self._environ, BOX_VARIABLE: box} if box else self._environ
                os.execvpe(command[0], list(command), environ)
            except OSError as error:
                os.write(2, f"error: {command[0]} did not start: {error.strerror}\n".encode())
            finally:
                os._exit(127)

        def _open_box(self) -> None:
            start, own = processes.start_time(self._pid), processes.start_time(os.getpid())
            if start is None:
                return
            with suppress(ConfigError, OSError):  # without a box nothing is typed; the program runs all the same
                box = Maildir(Maildir.place(self._maildirs, self._pid, start)).pty.make()
                (box.path / "owner").write_text(f"{os.getpid()} {own}\n", "ascii")
                self._box = box

        def _listen(self, pipe: int) -> None:
            """Signals wake the loop; those that end a program are handed to the child. The process is ours alone."""
            signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
            for name in ("TERM", "HUP", "INT", "QUIT", "USR1", "USR2"):
                signal.signal(signal.Signals["SIG" + name], self._hand_on)
            for number in (signal.SIGWINCH, signal.SIGCHLD):
                signal.signal(number, lambda *_: None)

        def _hand_on(self, number: int, _frame: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

        def _resize(self) -> None:
            with suppress(OSError):
                size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

        def _loop(self, wake: int, modes: list[Any]) -> int:
            while True:
                reads = [self._master, wake, *([0] if self._input and len(self._to_child) < 65536 else [])]
                writes = [self._master] if self._to_child else []
                can_read, can_write, _ = select.select(reads, writes, [], LOOK_MS / 1000)
                now = time.monotonic_ns() // 1_000_000
                if self._master in can_read:
                    self._out(now)
                if 0 in can_read:
                    self._keys(now)
                if can_write:
                    self._feed()
                if wake in can_read:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                    self._resize()
                if wake in can_read or now - self._looked >= LOOK_MS:
                    code = self._ended(modes)
                    if code is not None:
                        while self._out(now):
                            pass
                        return code
                self._look(now)

        def _out(self, now: int) -> bool:
            """From the program to the terminal; False when there is nothing."""
            try:
                data = os.read(self._master, 65536)
            except OSError:  # nothing there; or EIO: nobody holds the other end
                data = b""
            if data:
                self._typist.output(now, data)
                _write_all(1, data)
            else:
                time.sleep(0.01)  # the end itself is told by SIGCHLD
            return bool(data)

        def _keys(self, now: int) -> None:
            try:
                data = os.read(0, 65536)
            except OSError:
                data = b""
            if not data:  # the terminal is gone; SIGHUP says so to everybody
                self._input = False
                return
            self._typist.keys(now, data)
            self._to_child += data
            self._feed()

        def _feed(self) -> None:
            try:
                sent = os.write(self._master, self._to_child)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self._to_child)  # it takes nothing more
            del self._to_child[:sent]

        def _ended(self, modes: list[Any]) -> int | None:
            pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return None
            if os.WIFSTOPPED(status):
                self._stop(modes)
                return None
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

        def _stop(self, modes: list[Any]) -> None:
            """The program was suspended: so are we, with the terminal as it was, until somebody says go on."""
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
            os.kill(os.getpid(), signal.SIGSTOP)
            tty.setraw(0, termios.TCSADRAIN)
            self._resize()
            self._hand_on(signal.SIGCONT, None)

        def _look(self, now: int) -> None:
            """Type what waits, if this is the moment."""
            if self._box is None or self._to_child or now - self._looked < LOOK_MS:
                return
            self._looked = now
            names = self._box.waiting()
            if not names and not self._typist.reads_status:
                return
            session = clientfile.read(self._client(), clientfile.config_dir(self._environ))
            self._typist.says(session.status if session else "")
            if names and self._typist.may(now):
                self._type(self._box, names, now)

        def _client(self) -> int:
            """The process whose status counts: the one the agent named, if it is below us; else the child."""
            assert self._box is not None
            try:
                pid = int((self._box.path / "client").read_text("ascii"))
            except (OSError, ValueError):
                return self._pid
            return pid if self._pid in processes.ancestors(pid) else self._pid

        def _type(self, box: Box, names: list[str], now: int) -> None:
            pastes = self._typist.pastes
            claims = [c for name in (names[:1] if pastes else names) if (c := box.claim(name)) is not None]
            if not claims:
                return
            try:
                self._to_child += pasted(body(claims[0])) if pastes else notice(len(claims))
            except (OSError, ValueError):
                return  # garbage stays where it is, claimed
            self._typist.typed(now)
            self._feed()
            for claim in claims:
                with suppress(OSError):
                    box.finish(claim, shown=pastes)

        def _leave(self, code: int) -> None:
            """What the program left on in the terminal, when it could not clean up; and the box."""
            if code > 128 and self._typist.modes:
                off = b"".join(b"\x1b[?%dl" % mode for mode in sorted(self._typist.modes - {7, 12, 25}))
                with suppress(OSError):
                    _write_all(1, off + b"\x1b[?25h\x1b[<u\x1b[>4m\x1b[0m\r\n")
            with suppress(OSError):
                if self._box is not None:
                    (self._box.path / "owner").unlink()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(handle, view) :]
        except BlockingIOError:
            select.select([], [handle], [])
