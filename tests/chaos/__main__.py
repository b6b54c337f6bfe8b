"""python -m tests.chaos [--copies N] [--seed N] [--blows N] [--keep DIR]

Random SIGKILL and SIGSTOP of broker, senders and recipients, cut and stalled links, full disks, restored and copied
databases, under traffic from three senders to three recipients; then a checker of its own. Exits 1 with each violation.
Full disks need root on Linux, for a small file system of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from bus.errors import BusError
from tests.chaos.check import SHOWN, Findings, Log, Restore, check
from tests.live.homes import ROOT, Home, free_pair
from tests.live.relay import Relay

SENDERS, RECIPIENTS = ("ann", "bea", "cem"), ("dan", "eve", "fay")
DISK_MIB = 384
BLOW_S = 2.5  # what one disturbance takes, about
SETTLE_S = 120.0  # the longest that all mail may take to arrive once nothing disturbs any more
SETTINGS = "port = {port}\n[limits]\nrate = 1000000\nburst = 1000000\nwakes = 0\nthanks = 0\n"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Process:
    """One worker over its lives."""

    def __init__(self, environ: dict[str, str], folder: Path, role: str, name: str, **options: object) -> None:
        self.name, self.role = name, role
        self.folder = folder / name
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.database = self.folder / "agent.db"
        self.log = Log(name, folder / f"{name}.log")
        given = {"name": name, "database": str(self.database), "log": str(self.log.path), "seed": name, **options}
        self.log.path.touch(0o600)
        self._command = [sys.executable, "-m", "tests.chaos.worker", role, json.dumps(given)]
        self._environ, self._errors = environ, folder / f"{name}.err"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environ, stderr=errors)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(15)

    def check(self) -> None:
        """RuntimeError when it ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended by itself: {self._errors.read_text()[-3000:]}")


def copy_database(database: Path, to: Path) -> None:
    """The database with its log, as they are while nobody has them open."""
    to.mkdir(exist_ok=True)
    for old in to.iterdir():
        old.unlink()
    for file in database.parent.glob(database.name + "*"):
        shutil.copy2(file, to / file.name)


def restore_database(database: Path, source: Path) -> None:
    for file in database.parent.glob(database.name + "*"):
        file.unlink()
    for file in source.iterdir():
        shutil.copy2(file, database.parent / file.name)


class Run:
    """The bus, the traffic and the disturbances."""

    def __init__(self, folder: Path, stack: ExitStack, seed: int, copies: int, blows: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.home = stack.enter_context(Home(folder / "bus"))
        self.home.settings(SETTINGS.format(port=free_pair()))
        self.disks: dict[str, Path] = {}
        self.home.paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mount("broker", self.home.paths.state, stack)
        record = self.home.start()
        self.relays = [stack.enter_context(Relay(("127.0.0.1", int(record.router.rsplit(":", 1)[1])))) for _ in "ab"]
        self._port = record.router
        environs = [{**self.home.environ, "TALKBUS_HUB": f"127.0.0.1:{r.port}#{record.key}"} for r in self.relays]
        each = max(1, copies // len(SENDERS) // len(RECIPIENTS))
        # The traffic lasts about as long as the disturbances, so that these strike in the middle of it.
        pace = BLOW_S * blows / each
        self.senders = [
            Process(environs[0], folder, "send", n, to=list(RECIPIENTS), count=each, pace=pace, filler="x" * 40)
            for n in SENDERS
        ]
        self.recipients = [Process(environs[1], folder, "receive", name, pace=0.0005) for name in RECIPIENTS]
        for process in (*self.recipients, *self.senders):
            self._mount(process.name, process.folder, stack)
            stack.callback(process.kill)
            process.start()
        self.goal = each * len(SENDERS) * len(RECIPIENTS)
        self.restores: list[Restore] = []
        self.copied: dict[str, float] = {}
        self.done: dict[str, int] = {}
        self.false: list[str] = []

    def _mount(self, name: str, where: Path, stack: ExitStack) -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            return
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "talkbus-chaos", str(where)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            self.disks[name] = where
            stack.callback(subprocess.run, ["umount", "-l", str(where)], check=False)

    # -- disturbances ------------------------------------------------------------------------------------------------

    def strike(self) -> None:
        """One disturbance, drawn at random."""
        kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "kill broker": (4, self._kill_broker),
            "kill worker": (8, self._kill_worker),
            "stop broker": (2, self._stop_broker),
            "stop worker": (3, self._stop_worker),
            "cut links": (4, self._cut),
            "stall links": (2, self._stall),
            "disk full": (4 if self.disks else 0, self._disk_full),
            "copy broker": (2, self._copy_broker),
            "restore broker": (2, self._restore_broker),
            "copy agent": (4, self._copy_agent),
            "restore agent": (4, self._restore_agent),
        }
        names = list(kinds)
        name = self.rng.choices(names, [kinds[n][0] for n in names])[0]
        kinds[name][1]()
        self.done[name] = self.done.get(name, 0) + 1

    def _kill_broker(self) -> None:
        self.home.kill()
        self._start_broker()

    def _start_broker(self) -> None:
        record = self.home.start(deadline=60)
        if record.router != self._port:
            raise RuntimeError(f"the broker moved from {self._port} to {record.router}")

    def _kill_worker(self) -> None:
        process = self.rng.choice((*self.senders, *self.recipients))
        process.kill()
        process.start()

    def _stop_broker(self) -> None:
        assert self.home.process is not None
        self._stop(self.home.process)

    def _stop_worker(self) -> None:
        process = self.rng.choice((*self.senders, *self.recipients)).process
        assert process is not None
        self._stop(process)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.choice((0.3, 1.0, 3.0, 8.0, 18.0)))
        process.send_signal(signal.SIGCONT)

    def _cut(self) -> None:
        self.rng.choice(self.relays).reset()

    def _stall(self) -> None:
        self.rng.choice(self.relays).stall(up=self.rng.random() < 0.7, down=self.rng.random() < 0.7)

    def _disk_full(self) -> None:
        where = self.disks[self.rng.choice(list(self.disks))]
        filler = where / "filler"
        with filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 65536, 4096, 1):
                with suppress(OSError):
                    while file.write(b"x" * size):
                        continue
        time.sleep(self.rng.choice((0.2, 1.0, 3.0)))
        filler.unlink()

    def _broker_database(self) -> Path:
        return self.home.paths.state / "bus.db"

    def _copy_broker(self) -> None:
        self.home.kill()
        copy_database(self._broker_database(), self.folder / "copy-broker")
        self.copied["broker"] = time.time()
        self._start_broker()

    def _restore_broker(self) -> None:
        if "broker" not in self.copied:
            return
        self.home.kill()
        restore_database(self._broker_database(), self.folder / "copy-broker")
        self.restores.append(Restore("broker", self.copied["broker"], time.time()))
        # A recipient restored to before this as well would leave nobody who knows what it was shown.
        self.copied = {"broker": self.copied["broker"]}
        self._start_broker()
        time.sleep(3.0)

    def _copy_agent(self) -> None:
        process = self.rng.choice((*self.senders, *self.recipients))
        process.kill()
        if process.database.exists():
            copy_database(process.database, self.folder / f"copy-{process.name}")
            self.copied[process.name] = time.time()
        process.start()

    def _restore_agent(self) -> None:
        known = [p for p in (*self.senders, *self.recipients) if p.name in self.copied]
        if not known:
            return
        process = self.rng.choice(known)
        process.kill()
        restore_database(process.database, self.folder / f"copy-{process.name}")
        self.restores.append(Restore(process.name, self.copied[process.name], time.time()))
        self.copied.pop("broker", None)
        process.start()

    # -- looking -----------------------------------------------------------------------------------------------------

    def shown(self) -> int:
        """Copies shown so far, repeats included."""
        for process in (*self.senders, *self.recipients):
            process.check()
        return sum(len(p.log.of("shown")) for p in self.recipients)

    def why(self, idents: list[str]) -> dict[str, dict[str, str]]:
        """What the broker says became of each message: recipient -> status. Without those it does not know."""
        told: dict[str, dict[str, str]] = {}
        with self.home.view(60.0) as view:
            for ident in idents:
                rows = view.query("why", {"id": ident}, 60.0).rows
                if rows:
                    told[ident] = {value["name"]: value["status"] for value, _ in rows}
        return told

    def sample(self) -> None:
        """A few messages in the middle of the run: nothing may be called shown that was not."""
        idents = [line[2] for p in self.senders for line in p.log.of("accepted")[-50:]]
        with suppress(BusError):
            told = self.why(self.rng.sample(idents, min(10, len(idents))))
            for ident, copies in told.items():
                for name, status in copies.items():
                    log = next(p.log for p in self.recipients if p.name == name)
                    if status in SHOWN and not any(line[1] == ident for line in log.of("shown")):
                        self.false.append(f"why {ident}: {status} at {name} in the middle, not shown there by then")

    def unread(self) -> dict[str, int]:
        """Unread mail of each recipient, as `peers` tells it."""
        with self.home.view(60.0) as view:
            rows = view.query("peers", {"all": True}, 60.0).rows
        return {v["name"]: v["unread"] for v, _ in rows if v["name"] in RECIPIENTS}


def run(folder: Path, seed: int, copies: int, blows: int) -> tuple[Findings, Run]:
    """Disturb until everything was sent, then let it settle, and check."""
    with ExitStack() as stack:
        chaos = Run(folder, stack, seed, copies, blows)
        struck, last = 0, time.monotonic()
        while struck < blows or (
            not all(p.log.of("all sent") for p in chaos.senders) and time.monotonic() - last < SETTLE_S
        ):
            time.sleep(chaos.rng.uniform(0.1, 1.2))
            if struck < blows:
                chaos.strike()
                struck, last = struck + 1, time.monotonic()
            chaos.sample()
            if struck % 10 == 0 and struck < blows:
                say(f"{struck} of {blows} disturbances, {chaos.shown():,} shown, goal {chaos.goal:,} copies")
        until = time.time()
        calm = time.monotonic()
        logs = [p.log for p in chaos.recipients]
        wanted = {line[2] for p in chaos.senders for line in p.log.of("accepted") if line[0] <= until}
        while time.monotonic() - calm < SETTLE_S:
            missing = [len(wanted - {line[1] for line in log.of("shown")}) for log in logs]
            if not any(missing):
                break
            time.sleep(1.0)
        for process in chaos.senders:
            process.kill()
        unread: dict[str, int] = {}
        end = time.monotonic() + 60
        # The last flush of a sender that was killed may hold notes only; one more task carries them.
        with chaos.home.session("closing") as peer:
            peer.do("send", {"to": list(RECIPIENTS), "kind": "task"}, b"closing-0-0")
        while time.monotonic() < end and any((unread := chaos.unread()).values()):
            time.sleep(0.5)
        found = check([p.log for p in chaos.senders], logs, chaos.restores, chaos.why(sorted(wanted)), until)
        found.violations += chaos.false
        found.violations += [f"{name}: {n} unread at the end" for name, n in unread.items() if n]
        said = chaos.home.said()
        if "Traceback" in said:
            found.violations.append(f"the broker wrote a traceback: {said[said.index('Traceback') :][:2000]}")
        return found, chaos


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=30_000, help="copies of messages to be sent (default 30000)")
    parser.add_argument("--blows", type=int, default=120, help="disturbances (default 120)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the disturbances; printed")
    parser.add_argument("--keep", type=Path, help="leave the logs in this folder")
    args = parser.parse_args()
    say(f"seed {args.seed}")
    with ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="talkbus-chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        found, chaos = run(folder, args.seed, args.copies, args.blows)
    for text in found.violations[:50]:
        print(text)
    done = ", ".join(f"{name} {n}x" for name, n in sorted(chaos.done.items()))
    print(
        f"{found.accepted:,} messages accepted, {found.copies:,} copies shown, {found.marked} shown again and marked, "
        f"{found.marked_unshown} marked without having been shown, {found.excused} excused by a restore; {done}; "
        f"{len(found.violations)} violations"
    )
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
