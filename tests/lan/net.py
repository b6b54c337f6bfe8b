"""Hosts in network namespaces of their own, joined by a switch: veth pairs to a bridge in one namespace more.

Everything is made by `Net` and removed by it. A `Host` runs the talkbus command as a new user would, with a host name
of its own. `inside()` takes the calling thread into a namespace, so that sockets made there belong to it (libzmq's
threads too, for they begin where the context's first socket is made). Must not know what is tried.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from bus import config
from bus.daemon import Record, published
from bus.trust import KeyPair, ensure_keys
from tests.live.homes import DEADLINE, ROOT, wait_for
from tests.live.relay import Relay

_NEWNET = 0x40000000
_RUN = 'ulimit -Sn 256; hostname "$0" && exec "$@"'  # as few descriptors as some systems give by default


def missing() -> str:
    """Why hosts cannot be made here; "" when they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "there is no ip or unshare (apt-get install iproute2 util-linux)"
    name = f"tbtry{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"ip netns is not allowed here: {tried.stderr.strip()}"
    veth = _ip("-n", name, "link", "add", "va", "type", "veth", "peer", "name", "vb", check=False)
    bridge = _ip("-n", name, "link", "add", "ba", "type", "bridge", check=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    return (
        "" if veth.returncode == bridge.returncode == 0 else f"no veth or bridge here: {veth.stderr}{bridge.stderr}"
    )


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread in this namespace, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/var/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if libc.setns(home.fileno(), _NEWNET):
                os._exit(70)  # in a strange network nothing that follows would mean anything


class Net:
    """A switch, and hosts at it. Use it as a context manager."""

    def __init__(self) -> None:
        self._mark = f"tb{os.getpid()}"
        self.switch = f"{self._mark}-sw"
        self._made = 0

    def __enter__(self) -> Self:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "set", "lo", "up")
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.switch, "addr", "add", "10.77.0.254/24", "dev", "br0")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(1, self._made + 1):
            self._end(f"{self._mark}-{number}")
        self._end(self.switch)

    def _end(self, namespace: str) -> None:
        found = _ip("netns", "pids", namespace, check=False).stdout.split()
        for pid in map(int, found):
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _ip("netns", "del", namespace, check=False)

    def host(self, label: str, root: Path) -> Host:
        """One more host, with a home under `root`."""
        self._made += 1
        namespace, port = f"{self._mark}-{self._made}", f"p{self._made}"
        _ip("netns", "add", namespace)
        _ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        host = Host(self, label, namespace, port, root / label)
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        host.address = f"10.77.0.{self._made}"
        _ip("-n", namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        return host

    @contextmanager
    def relay(self, target: Host, port: int, delay: float = 0.0) -> Iterator[Relay]:
        """A relay at the switch, between whoever connects to it and `target`. Its address is `Net.RELAY`."""
        with ExitStack() as stack:
            with inside(self.switch):
                made = stack.enter_context(Relay((target.address, port), (self.RELAY, 0)))
            made.delay = delay
            yield made  # its thread began at the switch, and stays there

    RELAY = "10.77.0.254"


class Host:
    """One machine: its namespace, its home, and the command run in it."""

    def __init__(self, net: Net, label: str, namespace: str, port: str, root: Path) -> None:
        self.net, self.label, self.namespace, self._port = net, label, namespace, port
        self.address = ""
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TALKBUS_", "CLAUDE", "XDG_"))},
            "TALKBUS_HOME": str(root),
        }
        self.paths = config.home(self.environ)

    @property
    def before(self) -> list[str]:
        """The words that run a command on this host."""
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", _RUN, self.label]

    @property
    def config(self) -> config.Config:
        return config.load(self.paths, self.environ)

    @property
    def keys(self) -> KeyPair:
        return ensure_keys(self.paths)

    @property
    def record(self) -> Record:
        record = published(self.paths)
        assert record is not None, f"{self.label} runs no broker"
        return record

    @property
    def port(self) -> int:
        """The first of the two ports of the broker that runs here."""
        return int(self.record.router.rpartition(":")[2])

    def talkbus(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run the command, as typed; returns what it printed. AssertionError for another exit code."""
        done = self.tried(*words, stdin=stdin)
        assert done.returncode == code, f"{self.label}: talkbus {' '.join(words)}: {done}"
        return done.stdout if code == 0 else done.stderr

    def tried(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [*self.before, sys.executable, str(ROOT / "talkbus.py"), *words]
        return subprocess.run(
            command, env=self.environ, cwd="/", input=stdin, capture_output=True, text=True, timeout=60
        )

    def json(self, *words: str) -> Any:
        """The document a command prints with --json."""
        return json.loads(self.talkbus(*words, "--json"))

    def spawn(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """A process on this host; whoever asks ends it."""
        return subprocess.Popen([*self.before, *command], env=self.environ, cwd="/", text=True, **options)

    def kill_broker(self) -> None:
        """SIGKILL, as in a power cut."""
        pid = self.record.pid
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: published(self.paths) is None, f"the broker of {self.label} dead")

    def plug(self, in_: bool) -> None:
        """The cable, at the switch."""
        _ip("-n", self.net.switch, "link", "set", self._port, "up" if in_ else "down")

    def move(self, address: str) -> None:
        """Another address for this host; the former is gone."""
        _ip("-n", self.namespace, "addr", "flush", "dev", "eth0", "scope", "global")
        _ip("-n", self.namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        self.address = address

    @contextmanager
    def capture(self, path: Path) -> Iterator[None]:
        """Every packet on this host's cable, as long as the context lasts, written to `path`."""
        command = [
            "ip",
            "netns",
            "exec",
            self.net.switch,
            "tcpdump",
            "-U",
            "--immediate-mode",
            "-s",
            "0",
            "-i",
            self._port,
            "-w",
            str(path),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as dump:
            assert dump.stderr is not None
            for line in dump.stderr:
                if "listening" in line:
                    break
            try:
                yield
            finally:
                time.sleep(0.2)  # tcpdump has no word for "I have them all"
                dump.send_signal(signal.SIGINT)
                dump.wait(DEADLINE)


def pair(hub: Host, *members: Host, role: str = "member") -> None:
    """Open the hub and pair these, by the commands."""
    hub.talkbus("lan", "up")
    for member in members:
        line = hub.talkbus("lan", "invite", "--role", role).strip()
        member.talkbus("lan", "join", line)
