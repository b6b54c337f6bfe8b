"""Servers of other systems as processes of the bench's own: found, started in a temporary folder on loopback, ended.

Knows how to start a program and to see that it listens; knows nothing of what it serves.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import util
from pathlib import Path

STARTED_S = 15.0
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/opt/homebrew/sbin")


def program(name: str) -> str | None:
    """Where a program is; Debian puts servers where not everybody's PATH looks."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_PLACES))


def missing(name: str, package: str, module: str, client: str) -> str:
    """What has to be installed before a system can be measured; "" when nothing has."""
    wanted = []
    if program(name) is None:
        wanted.append(f"apt-get install {package}")
    if not _installed(module):
        wanted.append(f"pip install {client}, or 'talkbus[bench]'")
    return "; ".join(wanted)


def free_port() -> int:
    """A TCP port of loopback that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Server:
    """One process. start() returns when its port is open; kill() is SIGKILL; it is ended by running()."""

    def __init__(self, command: Callable[[int], Sequence[str]], folder: Path) -> None:
        self.port = free_port()
        self._command = [str(part) for part in command(self.port)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """RuntimeError, with the end of its log, when it does not listen in time."""
        log = self._folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        until = time.monotonic() + STARTED_S
        while time.monotonic() < until and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
            except OSError:
                time.sleep(0.02)
        self.kill()
        said = log.read_text("utf-8", "replace").splitlines()[-3:]
        raise RuntimeError(f"{Path(self._command[0]).name} does not listen: {' / '.join(said)}")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def stop(self) -> None:
        """In good order, or by force when that takes too long."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def running(command: Callable[[int], Sequence[str]], folder: Path) -> Iterator[Server]:
    """A started server, surely ended afterwards."""
    server = Server(command, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _installed(module: str) -> bool:
    """Whether a module, or one within a package, could be imported."""
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
