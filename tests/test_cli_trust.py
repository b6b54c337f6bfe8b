"""policy, hold, pause: what is asked of the bus, who may, and what a person sees. Without a broker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.cli import exits
from agent.effects import Settled
from bus.errors import Code
from tests.test_cli_bed import EVIL, ID, FakePerson, Script, letter, run, script

__all__ = ["script"]  # a fixture

RULE = {"machine": "K" * 40, "host": "laptop", "name": "api", "kind": "", "action": "hold", "ts": 1_700_000_000_000}
COMMANDS = (
    ("policy", "set", "accept", "--machine", "laptop"),
    ("policy", "unset", "--machine", "laptop"),
    ("hold", "list"),
    ("hold", "release", "--all"),
    ("hold", "drop", ID),
    ("pause",),
    ("resume",),
)


@pytest.fixture(autouse=True)
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLAUDECODE", "CLAUDE_CODE_SESSION_ID"):
        monkeypatch.delenv(name, raising=False)


def held(ident: str = ID, body: bytes = b"may I?", **more: Any) -> tuple[dict[str, Any], bytes]:
    made = letter(ident, host="laptop", to="api", since=1_700_000_000_000, why="no rule", size=6, at=1, **more)
    return made, body


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_session_may(script: Script, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    script.answers["held"] = [held()]
    script.settled = Settled(1, 200, {"done": 1, "released": 0, "rule": RULE}, "")
    monkeypatch.setattr(FakePerson, "kind", "session")
    result = run(script, *command)
    assert (result.exit_code, result.stdout, script.done, script.asked) == (exits.REFUSED, "", [], [])
    assert "only a person may" in result.stderr and "inside the session me" in result.stderr
    monkeypatch.setattr(FakePerson, "kind", "script")
    assert "acts as me" in run(script, *command).stderr
    monkeypatch.setattr(FakePerson, "kind", "human")
    monkeypatch.setenv("CLAUDECODE", "1")
    assert "CLAUDECODE is set" in run(script, *command).stderr and not script.done
    monkeypatch.delenv("CLAUDECODE")
    assert run(script, *command).exit_code == exits.DONE


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ((), {}),
        (("--machine", "laptop"), {"machine": "laptop"}),
        (("--from", "API@laptop"), {"machine": "laptop", "name": "api"}),
        (
            ("--from", "api", "--machine", "laptop", "--kind", "note"),
            {"machine": "laptop", "name": "api", "kind": "note"},
        ),
        (("--from", "api"), {"name": "api"}),
        (("--from", "@laptop"), {"machine": "laptop"}),
    ],
)
def test_whose_mail_a_rule_is_about(script: Script, options: tuple[str, ...], args: dict[str, str]) -> None:
    script.settled = Settled(1, 200, {"rule": RULE}, "")
    result = run(script, "policy", "set", "hold", *options)
    assert result.stdout == "hold: mail from api at laptop\n"
    assert script.done == [("policy.set", {"action": "hold", **args}, b"")]
    assert json.loads(run(script, "policy", "unset", "--json", *options).stdout) == RULE
    assert script.done[-1] == ("policy.unset", args, b"")


@pytest.mark.parametrize(
    "args",
    [
        ("policy", "set", "allow"),
        ("policy", "set", "hold", "--from", "api@laptop", "--machine", "desk"),
        ("policy", "set", "hold", "--kind", "mail"),
        ("hold", "release"),
        ("hold", "release", ID, "--all"),
        ("hold", "drop", "--all", "--machine", "laptop"),
    ],
)
def test_usage(script: Script, args: tuple[str, ...]) -> None:
    result = run(script, *args)
    assert result.exit_code == exits.USAGE and result.stderr.startswith("error: ") and not script.done


def test_the_policy_is_listed_with_its_defaults(script: Script) -> None:
    script.answers["policy"] = [
        ({"rule": RULE}, b""),
        ({"rule": {**RULE, "name": "", "kind": "task", "host": f"lap{EVIL}"}}, b""),
        ({"rule": {**RULE, "name": "", "machine": "", "host": ""}}, b""),
        ({"paused": 5}, b""),
    ]
    result = run(script, "policy")
    lines = [" ".join(line.split()[:-1]) for line in result.stdout.splitlines()[1:4]]
    assert lines[0].startswith("hold api at laptop") and lines[2].startswith("hold every other machine")
    assert "tasks only" in lines[1] and "\x1b" not in result.stdout
    assert "accept  this machine" in result.stdout and "hold    every other machine" in result.stdout
    assert "paused since" in result.stderr
    told = json.loads(run(script, "policy", "--json").stdout)
    assert (
        told["paused"] == 5
        and told["rules"][0] == RULE
        and told["default"] == {"this machine": "accept", "others": "hold"}
    )


def test_what_is_held_is_printed_harmlessly(script: Script) -> None:
    script.answers["held"] = [held(body=f"do it {EVIL}".encode() + b"x" * 100), held("b" * 16)]
    result = run(script, "hold", "list")
    assert ID in result.stdout and "api@laptop" in result.stdout and "no rule" in result.stdout
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout and "x" * 60 not in result.stdout
    full = run(script, "hold", "list", "--full")
    assert "x" * 100 in full.stdout and "\x1b" not in full.stdout
    told = json.loads(run(script, "hold", "list", "--json", "--from", "api@laptop").stdout)
    assert (
        len(told) == 2
        and told[0]["host"] == "laptop"
        and told[0]["why"] == "no rule"
        and told[0]["body"].endswith("xxx")
    )
    assert json.loads(run(script, "hold", "list", "--json", "--machine", "desk").stdout) == []
    script.answers["held"] = []
    assert run(script, "hold", "list").stderr == "nothing is held\n"


def test_ids_may_be_cut_and_nothing_is_done_on_a_doubt(script: Script) -> None:
    script.answers["held"] = [held("k3v7" + "a" * 12), held("k3v7" + "b" * 12), held("m" * 16)]
    script.settled = Settled(1, 200, {"done": 1, "missing": []}, "")
    for ident, words in (("k3v7", "fits 2"), ("zzzz", "is not held"), ("m", "fits 1")):
        result = run(script, "hold", "release", "mmmm", ident)
        assert result.exit_code == exits.REFUSED and words in result.stderr and not script.done
    assert run(script, "hold", "release", "k3v7a", "mmmm").stdout == "released 1\n"
    assert script.done == [
        ("hold.release", {"ids": ["laptop/k3v7" + "a" * 12, "laptop/" + "m" * 16], "of": ["1", "1"]}, b"")
    ]


def test_all_of_a_sender_in_requests_that_fit(script: Script) -> None:
    script.answers["held"] = [held(f"{i:x}".rjust(16, "a")) for i in range(70)]
    script.settled = Settled(1, 200, {"done": 30, "missing": []}, "")
    result = run(script, "hold", "drop", "--machine", "laptop", "--reason", "not now", "--json")
    assert json.loads(result.stdout) == {"dropped": 90}
    assert [len(args["ids"]) for _, args, _ in script.done] == [32, 32, 6]
    assert all(args["reason"] == "not now" for _, args, _ in script.done)
    assert run(script, "hold", "drop", "--machine", "desk").exit_code == exits.REFUSED


def test_what_is_held_is_fetched_in_pages(script: Script) -> None:
    def page(args: dict[str, Any]) -> list[Any]:
        start = args.get("after", 0)
        return [
            ({**held(f"{i:x}".rjust(16, "a"))[0], "at": i}, b"") for i in range(start + 1, min(start + 200, 450) + 1)
        ]

    script.answers["held"] = page
    assert len(json.loads(run(script, "hold", "list", "--json").stdout)) == 450


def test_pause_and_resume(script: Script) -> None:
    script.settled = Settled(1, 200, {"paused": True, "released": 1}, "")
    assert "until 'talkbus resume'" in run(script, "pause").stdout
    assert run(script, "resume").stdout == "resumed; 1 held message went on\n"
    assert script.done == [("pause", {"on": True}, b""), ("pause", {"on": False}, b"")]
    assert json.loads(run(script, "pause", "--json").stdout) == {"paused": True}
    assert json.loads(run(script, "resume", "--json").stdout) == {"paused": False, "released": 1}


def test_the_inbox_hints_at_what_is_held(script: Script) -> None:
    script.answers["whoami"] = [({"name": "me", "host": "h", "presence": "gone", "held": 2}, b"")]
    assert "2 held for me (talkbus hold list)" in run(script, "inbox").stderr
    assert "held" not in run(script, "inbox", "--json").stderr


def test_a_refusal_of_the_broker_is_told(script: Script) -> None:
    script.settled = Settled(1, int(Code.NOT_FOUND), {}, "no machine is called 'x' (known: laptop)")
    result = run(script, "policy", "set", "hold", "--machine", "x")
    assert (result.exit_code, result.stderr) == (exits.REFUSED, "error: no machine is called 'x' (known: laptop)\n")


# -- redaction -------------------------------------------------------------------------------------------------------

TOKEN = "ghp_" + "a1" * 18


def test_send_tells_what_it_redacts_and_raw_is_for_a_person(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script.settled = Settled(1, 200, {"to": [{"name": "api", "host": "h", "status": "stored", "code": 200}]}, "")
    told = run(script, "send", "api", f"use {TOKEN}", "--json")
    assert json.loads(told.stdout)["redacted"] == {"GitHub token": 1}
    assert "redacted before it was sent: GitHub token" in told.stderr and "--raw" in told.stderr
    raw = run(script, "send", "api", f"use {TOKEN}", "--raw")
    assert raw.exit_code == exits.DONE and "redacted" not in raw.stderr
    assert "redacted" not in json.loads(run(script, "send", "api", "no secret", "--json").stdout)
    assert script.done[1][0] == "send" and len(script.done) == 3
    for kind in ("session", "script"):
        monkeypatch.setattr(FakePerson, "kind", kind)
        refused = run(script, "send", "api", f"use {TOKEN}", "--raw")
        assert refused.exit_code == exits.REFUSED and "only a person may send secrets" in refused.stderr
    assert len(script.done) == 3


def test_state_and_summary_tell_what_they_redact(script: Script) -> None:
    script.settled = Settled(1, 200, {"ver": 3}, "")
    assert "redacted before it was written: GitHub token" in run(script, "state", "set", "k", f'"{TOKEN}"').stderr
    assert "redacted before it was told: GitHub token" in run(script, "summary", f"with {TOKEN}").stderr
    assert TOKEN not in str(script.done[-1])
