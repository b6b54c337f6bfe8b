"""The listings without a broker: JSON by contract; state, prune, tap, config and status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.asks import Answer
from agent.cli import exits
from agent.cli.tap import tap
from agent.effects import Settled
from agent.outbox import StoredRow
from tests.test_cli_bed import EVIL, ID, Script, letter, run, script

__all__ = ["script"]  # a fixture

MESSAGE = {"again", "id", "from", "to", "kind", "tag", "reply_to", "thread", "ts", "body"}


# -- trace -----------------------------------------------------------------------------------------------------------


def test_why_json_is_the_contract(script: Script) -> None:
    step = {"status": "stored", "ts": 5, "proof": ""}
    value = {"id": ID, "from": "me", "name": "api", "host": "h", "status": "stored", "history": [step]}
    script.answers["why"] = [(value, b"")]
    told = json.loads(run(script, "why", ID[:6], "--json").stdout)
    assert told == {"id": ID, "from": "me", "to": [{"name": "api", "status": "stored", "history": [step]}]}
    assert "stored" in run(script, "why", ID).stdout


def test_why_knows_what_is_still_queued(script: Script) -> None:
    script.stored = StoredRow(1, ID, "send", {"to": ["api"]}, b"hi", 7)
    script.answers["why"] = Answer([], 404, 0, "no message")
    told = json.loads(run(script, "why", ID, "--json").stdout)
    assert told["to"][0]["status"] == "queued" and told["to"][0]["history"][0]["ts"] == 7
    script.stored = None
    result = run(script, "why", ID)
    assert (result.exit_code, result.stderr) == (exits.REFUSED, "error: no message\n")


def test_history_and_search(script: Script) -> None:
    script.answers["history"] = [(letter("b" * 16), b"new"), (letter("a" * 16), b"old")]
    told = json.loads(run(script, "history", "--json", "--peer", "api", "--limit", "2").stdout)
    assert [m["id"][0] for m in told] == ["a", "b"] and set(told[0]) == MESSAGE | {"status"}
    script.answers["search"] = Answer([(letter(snippet=f"[x] {EVIL}"), b"")], 200, 0, "7 of 9 messages are indexed")
    result = run(script, "search", "x", "y")
    assert "\x1b" not in result.stdout and "7 of 9" in result.stderr
    assert script.asked[-1] == ("search", {"query": "x y", "limit": 20})


def test_log(script: Script) -> None:
    entry = {
        "seq": 3,
        "at": 5,
        "ob": "o",
        "q": 1,
        "op": "send",
        "digest": "d",
        "chain": "c",
        "code": 200,
        "who": "me@h",
    }
    script.answers["log"] = [(entry, b"")]
    assert json.loads(run(script, "log", "--json").stdout) == [entry]
    script.events = [({}, [], False), (None, [{"class": "msg", "event": "stored", "ts": 5}], False)]
    lines = [json.loads(text) for text in run(script, "log", "-f", "--json", "--count", "1").stdout.splitlines()]
    assert lines[0] == entry and lines[1]["event"] == "stored"


# -- people, state, prune, tap ---------------------------------------------------------------------------------------


def peer(name: str, **more: Any) -> dict[str, Any]:
    made = {"name": name, "id": "01234567", "host": "h", "kind": "session", "presence": "open", "activity": "idle"}
    return {**made, "until": 0, "last_active": 5, "unread": 0, "wake": "", "cwd": "/x", "term": 4, **more}


def test_peers_json_is_the_contract(script: Script) -> None:
    script.answers["whoami"] = [({"name": "", "host": "h"}, b"")]
    rows = [peer("api", wake="terminal"), peer("far", host="elsewhere", summary=EVIL, wake=EVIL[:20])]
    script.answers["peers"] = [(row, b"") for row in rows]
    told = json.loads(run(script, "peers", "--json", "--active-within", "2").stdout)
    keys = "name id host cwd branch client summary presence activity last_active unread wake"
    assert set(told[0]) == set(keys.split())
    assert ("peers", {"all": False, "active": 120_000}) in script.asked
    near = run(script, "peers", "--scope", "machine")
    assert "api" in near.stdout and "far" not in near.stdout
    shown = run(script, "peers").stdout
    assert "\x1b" not in shown and "typed in, wakes" in shown


def test_take_reads_the_term_first(script: Script) -> None:
    script.answers["whoami"] = [({"name": "", "host": "h"}, b"")]
    script.answers["peers"] = [(peer("api"), b"")]
    script.settled = Settled(1, 200, {"name": "api", "term": 5, "unread": 2}, "")
    result = run(script, "take", "API", "--fresh")
    assert script.done == [("take", {"name": "api", "fresh": True, "term": 4}, b"")]
    assert "was held by" in result.stderr and "2 unread" in result.stdout


def test_what_peers_see(script: Script) -> None:
    script.settled = Settled(1, 200, {"name": "me"}, "")
    for args in (("busy", "2"), ("ready",), ("summary", "words"), ("rename", "you")):
        assert run(script, *args).exit_code == 0
    assert [(op, args) for op, args, _ in script.done] == [
        ("status", {"activity": "busy", "busy": 120_000}),
        ("status", {"activity": "idle"}),
        ("status", {"summary": "words"}),
        ("rename", {"name": "you"}),
    ]


def test_state(script: Script) -> None:
    script.settled = Settled(1, 200, {"ver": 9}, "")
    assert json.loads(run(script, "state", "set", "k", '{"a": 1}', "--json").stdout) == {"key": "k", "version": 9}
    run(script, "state", "set", "k", "plain text", "--string", "--if-version", "0", "--ttl", "2")
    assert script.done[0] == ("state.set", {"key": "k"}, b'{"a": 1}')
    assert script.done[1] == ("state.set", {"key": "k", "ver": 0, "ttl": 2000}, b'"plain text"')
    value = {"key": "k", "ver": 9, "by": "me@h", "host": "h", "project": "", "ts": 5}
    script.answers["state.get"] = [(value, b"8080")]
    assert run(script, "state", "get", "k").stdout == "8080\n"
    told = json.loads(run(script, "state", "get", "k", "--json").stdout)
    assert (told["value"], told["version"], told["by"]) == (8080, 9, "me@h")
    script.answers["state.list"] = [(value, b"8080")]
    assert json.loads(run(script, "state", "list", "--json").stdout) == [told]
    assert run(script, "state", "delete", "k").exit_code == 0


@pytest.mark.parametrize("value", ["plain", "NaN", "{", ""])
def test_a_value_that_is_no_json_is_told_the_way_out(script: Script, value: str) -> None:
    result = run(script, "state", "set", "k", value)
    assert result.exit_code == exits.REFUSED and "--string" in result.stderr


def test_state_watch(script: Script) -> None:
    script.events = [
        ({}, [], False),
        (None, [{"class": "state", "event": "set", "key": "other", "ver": 1, "ts": 5}], False),
        (None, [{"class": "state", "event": "set", "key": "api:port", "ver": 2, "by": "b", "ts": 5}], False),
        (None, [{"class": "state", "event": "delete", "key": "api:port", "by": "b", "ts": 6}], False),
    ]
    script.answers["state.get"] = [({"key": "api:port", "ver": 2, "by": "b", "ts": 5}, b"1")]
    result = run(script, "state", "watch", "api:", "--count", "2", "--json")
    lines = [json.loads(text) for text in result.stdout.splitlines()]
    assert [(line["event"], line.get("value")) for line in lines] == [("set", 1), ("delete", None)]


def test_prune(script: Script) -> None:
    counts = iter((3, 2, 0))
    script.answers["stats"] = [({"now": 30 * 86_400_000 + 7}, b"")]
    script.answers["prune"] = lambda args: [({"messages": next(counts), "octets": 9, "orders_left": 0}, b"")]
    script.settled = Settled(1, 200, {}, "")
    result = run(script, "prune", "--older-than", "30", "--json")
    told = json.loads(result.stdout)
    assert (told["messages"], told["left"], told["before"]) == (3, 0, 7)
    assert [op for op, _, _ in script.done] == ["prune"]
    counts = iter((3,))
    assert run(script, "prune", "--older-than", "30", "--dry-run").stdout.startswith("would go: 3 messages")
    assert len(script.done) == 1


def test_tap(script: Script) -> None:
    script.events = [
        ({}, [{"class": "peer", "event": "open", "name": "web", "ts": 5}], False),
        (None, [{"class": "msg", "event": "stored", "from": EVIL, "to": "api", "ts": 5}], False),
    ]
    lines = run(script, "--json", "--count", "2", command=tap).stdout.splitlines()
    assert [json.loads(text)["event"] for text in lines] == ["snapshot", "open", "stored"]
    result = run(script, "--peer", "api", "--count", "1", command=tap)
    assert result.exit_code == 0 and "stored" in result.stdout and "\x1b" not in result.stdout
    assert run(script, "--timeout", "0", command=tap).exit_code == exits.TIMED_OUT


def test_config(script: Script) -> None:
    assert run(script, "config", "set", "limits.rate", "200").exit_code == 0
    told = json.loads(run(script, "config", "show", "--json").stdout)
    found = {s["name"]: (s["value"], s["origin"]) for s in told["settings"]}
    assert found["limits.rate"] == (200, "file")
    for name, words in (
        ("limits.rat", "limits.rate"),
        ("prt", "did you mean port"),
        ("metrics.of", "did you mean metrics.port"),
        ("xyzzy", "(talkbus config show lists them all)"),
    ):
        refused = run(script, "config", "set", name, "1")
        assert refused.exit_code == exits.USAGE, name
        assert refused.stderr.startswith(f"error: there is no setting '{name}' (") and words in refused.stderr
    assert "limits.rate" in run(script, "config", "show").stdout


def test_status_without_a_broker_is_3(script: Script) -> None:
    result = run(script, "status", "--json")
    assert result.exit_code == exits.UNREACHABLE
    assert json.loads(result.stdout)["running"] is False
