"""invitations and the joined hub: a line that survives a shell and a person, and a state that is never guessed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from bus import joined as joins
from bus import z85
from bus.config import Home, home, load
from bus.daemon import ensure_broker
from bus.errors import ConfigError, LocalError, Unreachable
from bus.invitations import Line, address, parse
from bus.joined import Joined
from bus.private import private_dir
from bus.roll import Principal, Roll, fingerprint, with_own
from bus.roll import parse as parse_roll
from bus.roll import text as roll_text

KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
RAW = bytes.fromhex("bb88471d65e2659b30c55a5321cebb5aab2b70a398645c26dca2b2fcb43fc518")
TOKEN = "000102030405060708090a0b0c0d0e0f"
LINE = Line("192.168.1.20", 7717, 7718, 7719, KEY, TOKEN)


@pytest.fixture
def bus(tmp_path: Path) -> Home:
    return home({"TALKBUS_HOME": str(tmp_path / "bus")})


@pytest.mark.parametrize("host", ["192.168.1.20", "hub.lan", "fe80::1%eth0", "0.tcp.ngrok.io", "::1"])
def test_a_line_says_what_it_was_made_of_and_means_nothing_to_a_shell(host: str) -> None:
    line = Line(host, 7717, 7718, 7719, KEY, TOKEN)
    assert parse(line.text()) == line
    assert shlex.quote(line.text().replace("%", "")) == line.text().replace("%", "")
    assert parse(f"  '{line.text()}'\n") == line
    half = len(line.text()) // 2
    assert parse(f"{line.text()[:half]}\n  {line.text()[half:]}") == line, "wrapped by a terminal"
    assert TOKEN not in repr(line) and KEY in repr(line)


@given(st.integers(0, len(LINE.text()) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_is_found_out(at: int, letter: str) -> None:
    text = LINE.text()
    damaged = text[:at] + letter + text[at + 1 :]
    try:
        assert parse(damaged) == LINE
    except LocalError as error:
        assert TOKEN not in str(error) and text.rpartition(":")[2] not in str(error)


@pytest.mark.parametrize(
    "text", ["", "talkbus:", "talkbus:h:1:x", "ssh:h:1,2,3:x", LINE.text()[:-4], LINE.text()[8:]]
)
def test_what_is_no_line_is_told(text: str) -> None:
    with pytest.raises(LocalError, match="invitation"):
        parse(text)


@pytest.mark.parametrize("text", ["http://x.ngrok.app", "https://x.ngrok.app:443/", "wss://x"])
def test_an_http_tunnel_is_refused_and_the_tcp_one_named(text: str) -> None:
    with pytest.raises(LocalError, match="ngrok tcp"):
        address(text)
    if text.startswith("http"):
        with pytest.raises(LocalError, match="HTTP tunnel"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hub.lan", ("hub.lan", 0)),
        ("hub.lan:7717", ("hub.lan", 7717)),
        ("tcp://0.tcp.ngrok.io:12345", ("0.tcp.ngrok.io", 12345)),
        ("fe80::1", ("fe80::1", 0)),
        ("[fe80::1]:7717", ("fe80::1", 7717)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert address(text) == found


@pytest.mark.parametrize("text", ["", "a b", "hub:0", "hub:70000", "hub:x", "udp://hub:1", "hub/x"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(LocalError):
        address(text)


def test_z85_is_libzmqs() -> None:
    assert z85.encode(RAW) == KEY and z85.decode_key(KEY) == RAW
    public, _ = zmq.curve_keypair()
    assert z85.encode(z85.decode_key(public.decode())) == public.decode()
    for text in ("", "#" * 40, "é" * 40, KEY[:-1]):
        with pytest.raises(ValueError):
            z85.decode_key(text)


# -- joined ----------------------------------------------------------------------------------------------------------


def test_a_join_is_found_again_and_a_setting_goes_before_it(bus: Home) -> None:
    assert joins.hub(bus, load(bus, {})) is None
    joins.remember(bus, Joined("fe80::1", 7717, 7718, KEY, "laptop", 5))
    found = joins.hub(bus, load(bus, {}))
    assert found is not None and found.endpoint == "tcp://[fe80::1]:7717" and found.activity == "tcp://[fe80::1]:7718"
    other = joins.hub(bus, load(bus, {"TALKBUS_HUB": f"box:9#{KEY}"}))
    assert other is not None and (other.host, other.activity) == ("box", "tcp://box:10")
    with pytest.raises(Unreachable, match="runs no broker"):
        ensure_broker(bus, 1.0)
    assert joins.forget(bus) and not joins.forget(bus)
    assert joins.hub(bus, load(bus, {})) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', json.dumps({"host": "", "port": 0})])
def test_a_broken_join_is_not_taken_for_none(bus: Home, text: str) -> None:
    """A machine that started a bus of its own for it would split the bus in two."""
    private_dir(bus.state)
    (bus.state / "hub.json").write_text(text)
    with pytest.raises(ConfigError, match="lan leave"):
        joins.hub(bus, load(bus, {}))
    with pytest.raises(ConfigError):
        ensure_broker(bus, 1.0)


# -- the roll --------------------------------------------------------------------------------------------------------


def test_a_roll_is_what_its_text_says() -> None:
    roll = Roll({KEY: Principal("laptop", "member", 7), "O" * 40: Principal("desk", "observer", 8)})
    assert dict(parse_roll(roll_text(roll))) == dict(roll)
    whole = with_own(roll, "H" * 40, "laptop")
    assert whole.find("H" * 40) == Principal("laptop-2", "owner") and "H" * 40 not in roll_text(whole)
    assert dict(with_own(roll, KEY, "desk")) == {
        KEY: Principal("desk-2", "owner"),
        "O" * 40: Principal("desk", "observer", 8),
    }, "its own key is the owner, whatever the file says"


@pytest.mark.parametrize("label", ["", "-a", "A", "a b", "x" * 33, "ü"])
def test_a_label_that_is_none_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="number 1"):
        parse_roll(f'[[key]]\npublic = "{KEY}"\nlabel = "{label}"\nrole = "member"\n')


def test_two_machines_of_one_label_are_refused() -> None:
    entry = '[[key]]\npublic = "{}"\nlabel = "x"\nrole = "member"\n'
    with pytest.raises(ValueError, match="already"):
        parse_roll(entry.format(KEY) + entry.format("O" * 40))
    assert fingerprint(KEY) != fingerprint("O" * 40)
