"""What a real session did is read by another one and by a person: its tool calls and their results, without secrets."""

from __future__ import annotations

import pytest

from .api import FakeApi
from .buses import Bus, call
from .messages import tool_results, tool_use
from .session import Home

pytestmark = pytest.mark.e2e

TOKEN = "ghp_" + "a1" * 18


def test_calls_and_results_are_read_and_found(api: FakeApi, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(home.path / ".claude"))  # the commands run in another home
    with Bus(home) as bus:
        bob, alice = bus.tui(home.project("bob")), bus.tui(home.project("alice"))
        command = f"export TOKEN={TOKEN}; echo heron | tr a-z A-Z; cat no-such-file"
        tool = tool_use("Bash", command=command, description="look")
        api.on("please look", tool)
        bob.submit("please look")
        api.wait(lambda r: tool["id"] in tool_results(r))
        bob.wait_idle()
        listed = bus.run("transcript", "bob").stdout
        line = next(x for x in listed.splitlines() if " tool: " in x)
        assert 'Bash {"command":"export TOKEN=[redacted GitHub token]; echo heron' in line and "→ error: " in line
        assert "HERON" in line and TOKEN not in listed
        (hit,) = bus.json("transcript", "bob", "--search", "no such file")["hits"]
        assert (hit["role"], hit["n"]) == ("tool", 2)
        assert bus.json("transcript", "bob", "--search", "HE[RT]ON", "--regex")["hits"][0]["n"] == 2
        whole = bus.run("transcript", "bob", "--turn", "2").stdout
        assert "| Bash {" in whole and "HERON" in whole and TOKEN not in whole
        asked = call("read_history", peer="bob", query="heron")
        api.on("what did bob do", asked)
        alice.submit("what did bob do")
        told = tool_results(api.wait(lambda r: asked["id"] in tool_results(r)))[asked["id"]]
        assert "turn 2 tool" in told and "echo heron" in told and TOKEN not in told
