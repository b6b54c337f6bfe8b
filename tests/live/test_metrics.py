"""Metrics and logs of a broker that runs as users run it: scraped, hung upon, its port taken; rotated; followed."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live.homes import DEADLINE, wait_for
from tests.live.test_cli import Bus, bus

__all__ = ["bus"]
pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(sys.platform == "win32", reason="signals")]


@pytest.fixture
def port() -> Iterator[int]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    yield number


def scrape(port: int, path: str = "/metrics", **headers: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        assert answer.headers["Content-Type"].startswith(
            "text/plain; version=0.0.4" if answer.status == 200 else "text"
        )
        return str(answer.read().decode())


def value(port: int, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(scrape(port))
    return next(s.value for f in families for s in f.samples if s.name == name and s.labels == labels)


def refused(port: int, path: str = "/metrics", **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        scrape(port, path, **headers)
    raised.value.close()
    return raised.value.code


def test_metrics_are_scraped_and_nobody_is_held_up(bus: Bus, port: int) -> None:
    bus.ok("config", "set", "metrics.port", str(port))
    bus.ok("send", "--as", "secret-name", "--new", "b", "secret text")
    first = wait_for(lambda: value(port, "talkbus_message_steps_total", step="stored"), "the message counted")
    assert first == 1 and value(port, "talkbus_unread_messages") == 1
    assert value(port, "process_resident_memory_bytes") > 1_000_000
    assert "secret" not in scrape(port)
    assert (refused(port, "/"), refused(port, Host="evil.example"), refused(port, Host="evil.example:80")) == (
        404,
        403,
        403,
    )
    with ExitStack() as stack:
        for _ in range(20):  # who connects and says nothing, more than there is room for
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port))))
        bus.ok("send", "--as", "secret-name", "b", "again")
        assert len(bus.ok("inbox", "--as", "b", "--json").json) == 2
    wait_for(lambda: _count(port, "injected") == 2, "the messages counted as shown")
    with pytest.raises(OSError):
        socket.create_connection((_other_address(), port), timeout=2)


def _count(port: int, step: str) -> float:
    try:
        return value(port, "talkbus_message_steps_total", step=step)
    except OSError:
        return -1  # the room is not free yet


def _other_address() -> str:
    """An address of this machine that is not 127.0.0.1, where nobody may listen."""
    return "127.0.0.2" if sys.platform == "linux" else "::1"


def test_a_port_that_is_taken_is_said_and_the_bus_goes_on(bus: Bus) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bus.ok("config", "set", "metrics.port", str(taken.getsockname()[1]))
        bus.ok("send", "--as", "a", "--new", "b", "x")
        said = wait_for(lambda: "no metrics at" in log(bus), "the warning")
    assert said and "Traceback" not in log(bus)


def test_without_the_setting_nothing_listens(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "x")
    assert "serving on" in log(bus) and "metrics at" not in log(bus)


def log(bus: Bus) -> str:
    path = bus.root / "state" / "logs" / "broker.jsonl"
    for line in path.read_text("ascii").splitlines():
        assert {"ts", "level", "logger", "pid", "text"} <= set(json.loads(line))
    return path.read_text("ascii")


def test_log_f_follows_filters_and_heals(bus: Bus) -> None:
    bus.ok("send", "--as", "a", "--new", "b", "before")
    with bus.start("log", "-f", "--json", "--peer", "a") as following:
        assert following.stdout is not None
        try:
            assert json.loads(following.stdout.readline())["op"] == "send"
            bus.ok("send", "--as", "c", "--new", "d", "not of a")
            bus.ok("send", "--as", "a", "b", "now")
            told = json.loads(following.stdout.readline())
            assert (told["event"], told["from"]) == ("stored", "a")
            bus.ok("down")
            bus.ok("up")
            bus.ok("send", "--as", "a", "b", "after")
            found = [json.loads(following.stdout.readline())]
            while (found[-1].get("event"), found[-1].get("from")) != ("stored", "a") and found[-1].get("seq") != 4:
                found.append(json.loads(following.stdout.readline()))
            names = [entry.get("event", entry.get("op")) for entry in found]
            assert "lost" in names and "missed" in names, names
        finally:
            following.kill()


def test_an_agent_keeps_a_log_beside_its_database(bus: Bus, tmp_path: Path) -> None:
    frames = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode() + b"\n"
    bus.run("mcp", stdin=frames, env=bus.env(TALKBUS_NAME="api", TALKBUS_LOG="debug"))
    (path,) = (bus.root / "state" / "agents").glob("*/agent.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert {line["logger"] for line in lines} == {"agent"} and lines[0]["text"] == "% serving as api"
