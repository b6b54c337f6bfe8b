"""From two empty homes on two hosts: three commands, and they are one bus."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.lan.net import Net, pair
from tests.live.homes import ROOT, wait_for

pytestmark = pytest.mark.timeout(120)

SECRET = "the quick brown fox jumps over 0451"


def documented() -> list[tuple[str, list[str]]]:
    """The commands of the README's block, with the host each is typed on."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- commands: pairing -->\n```sh\n")[2].partition("```")[0]
    rows = []
    for line in block.splitlines():
        prompt, _, command = line.partition("$ ")
        rows.append((prompt, command.partition("#")[0].split()))
    return rows


def test_the_three_commands_of_the_readme_and_mail_goes_both_ways(net: Net, root: Path) -> None:
    hub, laptop = net.host("hub", root), net.host("laptop", root)
    hosts = {"hub": hub, "laptop": laptop}
    commands = documented()
    assert len(commands) == 3
    line = ""
    said = []
    for place, (program, *words) in commands:
        assert program == "talkbus"
        words = [line if word == "LINE" else word for word in words]
        told = hosts[place].tried(*words)
        assert told.returncode == 0, told
        said.append(told.stdout + told.stderr)
        line = told.stdout.strip()
    marks = [re.findall(r"\b(?:[a-z2-7]{4}-){4}[a-z2-7]{4}\b", text) for text in said]
    assert marks[0] == marks[1] and len(set(marks[2])) == 2 and marks[0][0] in marks[2]
    assert hub.address in said[0] and "no machine is paired" in said[0]
    assert {row["fingerprint"] for row in hub.json("lan", "peers")} == set(marks[2])

    laptop.talkbus("send", "api@hub", "up", "--as", "web", code=1)  # nobody is called so yet
    hub.talkbus("send", "api", SECRET, "--new", "--as", "api")
    laptop.talkbus("send", "api@hub", SECRET, "--as", "web")
    (mine, letter) = hub.json("inbox", "--as", "api")
    assert (mine["from"], letter["from"], letter["body"]) == ("api", "web", SECRET)
    hub.talkbus("send", "web@laptop", "down", "--as", "api")
    (letter,) = laptop.json("inbox", "--as", "web")
    assert (letter["from"], letter["body"]) == ("api", "down")
    assert "web@laptop" in hub.talkbus("history")
    assert not laptop.paths.record.exists(), "a joined machine starts no broker of its own"
    assert "has no broker" in laptop.talkbus("up", code=1) or "another one" in laptop.talkbus("up", code=1)


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="there is no tcpdump (apt-get install tcpdump)")
def test_nothing_is_readable_on_the_wire(net: Net, root: Path) -> None:
    hub, laptop = net.host("hub", root), net.host("laptop", root)
    hub.talkbus("lan", "up")
    line = hub.talkbus("lan", "invite").strip()
    path = root / "wire.pcap"
    with laptop.capture(path):
        laptop.talkbus("lan", "join", line)
        hub.talkbus("send", "api", "first", "--new", "--as", "api")
        laptop.talkbus("send", "api@hub", SECRET, "--as", "web", "--tag", "a-known-tag")
        assert SECRET in hub.talkbus("inbox", "--as", "api")
    seen = path.read_bytes()
    assert len(seen) > 5000 and b"CURVE" in seen, "the capture has the traffic"
    from bus.invitations import parse

    for plain in (SECRET, "a-known-tag", parse(line).token, "ENROLL", "api@hub"):
        assert plain.encode() not in seen, plain
    assert bytes.fromhex(parse(line).token) not in seen


def test_each_machine_has_its_own_names_and_labels_are_unique(net: Net, root: Path) -> None:
    hub = net.host("hub", root)
    twins = [net.host("laptop", root / str(n)) for n in range(2)]
    pair(hub, *twins)
    assert sorted(row["host"] for row in hub.json("lan", "peers")) == ["hub", "laptop", "laptop-2"]
    for host in (hub, *twins):
        host.talkbus("inbox", "--as", "api")  # to say hello makes the mailbox
    for target, number in (("api@hub", 0), ("api@laptop", 1), ("api@laptop-2", 2)):
        twins[0].talkbus("send", target, f"for {number}", "--as", "someone")
    # The hub and a machine were paired by their people; two machines of the hub know each other by nobody's word.
    assert [row["host"] for row in twins[1].json("hold", "list")] == ["laptop"]
    twins[1].talkbus("hold", "release", "--all")
    for host, number in ((hub, 0), (twins[0], 1), (twins[1], 2)):
        assert [x["body"] for x in host.json("inbox", "--as", "api")][-1] == f"for {number}"


def test_an_invitation_is_good_once_and_a_wrong_line_is_told(net: Net, root: Path) -> None:
    hub, laptop, stranger = (net.host(name, root) for name in ("hub", "laptop", "stranger"))
    hub.talkbus("lan", "up")
    line = hub.talkbus("lan", "invite").strip()
    assert "damaged" in laptop.talkbus("lan", "join", line[:-3] + "AAA", code=1)
    assert "HTTP" in hub.talkbus("lan", "invite", "--host", "https://abc.ngrok.app", code=1)
    assert "ngrok tcp" in hub.talkbus("lan", "invite", "--host", "https://abc.ngrok.app", code=1)
    laptop.talkbus("lan", "join", line)
    told = stranger.tried("lan", "join", line)
    assert told.returncode == 3 and "invitation" in told.stderr and "Traceback" not in told.stderr
    assert [row["host"] for row in hub.json("lan", "peers")] == ["hub", "laptop"]
    assert laptop.json("lan", "join", line)["label"] == "laptop", "whoever is in is told so, not refused"


def test_unread_mail_of_its_own_bus_moves_along(net: Net, root: Path) -> None:
    hub, laptop = net.host("hub", root), net.host("laptop", root)
    for number in range(3):
        laptop.talkbus("send", "api", f"waits {number}", "--new", "--as", "web", "--tag", "t")
    laptop.talkbus("send", "web", "a note", "--note", "--as", "api")
    hub.talkbus("send", "api", "not yours", "--new", "--as", "hubber")
    pair(hub, laptop)
    assert hub.json("status")["waiting"] == 5
    letters = laptop.json("inbox", "--as", "api")
    assert [(x["body"], x["from"], x["tag"]) for x in letters] == [(f"waits {n}", "web", "t") for n in range(3)]
    assert [x["kind"] for x in laptop.json("inbox", "--as", "web")] == ["note"]
    laptop.talkbus("lan", "leave")
    laptop.talkbus("up")
    assert laptop.json("status")["waiting"] == 0, "it must not be shown here once more"


def test_revoked_means_not_paired_within_a_second_and_everywhere(net: Net, root: Path) -> None:
    hub, laptop, desk = (net.host(name, root) for name in ("hub", "laptop", "desk"))
    pair(hub, laptop, desk)
    hub.talkbus("send", "api", "x", "--new", "--as", "api")
    hub.kill_broker()
    assert "queued" in laptop.talkbus("send", "api@hub", "before", "--as", "web")
    hub.talkbus("up")
    hub.talkbus("lan", "revoke", "laptop")
    refused = laptop.tried("send", "api@hub", "after", "--as", "web")
    assert (refused.returncode, refused.stdout) == (1, "") and "not paired" in refused.stderr
    told = laptop.tried("status")
    assert told.returncode == 1 and "not paired" in told.stdout + told.stderr
    assert "not paired" in laptop.tried("doctor").stdout
    desk.talkbus("send", "api@hub", "still here", "--as", "web")
    line = hub.talkbus("lan", "invite").strip()
    laptop.talkbus("lan", "join", line)
    laptop.talkbus("status")
    bodies = wait_for(lambda: [x["body"] for x in hub.json("inbox", "--peek", "--as", "api")][2:], "what was queued")
    assert bodies == ["before"]
    assert "no machine is called 'nobody'" in hub.talkbus("lan", "revoke", "nobody", code=1)
    assert "needs the role owner" in laptop.talkbus("lan", "revoke", "desk", code=1)


def test_a_hub_is_found_only_if_it_announces_itself(net: Net, root: Path) -> None:
    hub, laptop = net.host("hub", root), net.host("laptop", root)
    hub.talkbus("lan", "up")
    assert laptop.json("lan", "find", "--seconds", "1") == []
    told = hub.json("lan", "up", "--announce")
    found = wait_for(lambda: laptop.json("lan", "find", "--seconds", "1"), "the announced hub")
    wanted = {"host": "hub", "address": hub.address, "port": told["port"], "fingerprint": told["fingerprint"]}
    assert found == [wanted]
    secrets = [hub.keys.public, hub.keys.secret]
    assert not any(key in str(found) for key in secrets)
