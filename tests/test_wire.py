"""Frames: every command there and back, and nothing but commands comes in."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import journal, wire
from bus.errors import Code, LocalError, RemoteError
from bus.plain import is_plain

nums = st.integers(0, wire.NUM_MAX)
plain = st.none() | st.booleans() | nums | st.text(max_size=8)
of_type = {
    "num": nums,
    "text": st.text(max_size=20),
    "flag": st.booleans(),
    "map": st.dictionaries(st.text(max_size=8), plain, max_size=3),
    "ranges": st.lists(nums, max_size=8, unique=True).map(lambda ns: wire.ranges(sorted(ns))),
}


@st.composite
def commands(draw: Any) -> tuple[Any, str]:
    spec = draw(st.sampled_from(list(wire.COMMANDS.values())))
    values = {f.attr: draw(of_type[f.type]) for f in spec.fields if f.required or draw(st.booleans())}
    if spec.body == "optional" and draw(st.booleans()):
        values["body"] = draw(st.binary(max_size=30))
    return spec.cls(**values), spec.sender


@given(commands())
def test_there_and_back(made: tuple[Any, str]) -> None:
    command, sender = made
    frames = wire.encode(command)
    assert wire.signed(frames)
    assert wire.decode(frames, sender) == command


@given(commands())
def test_only_from_the_side_that_may(made: tuple[Any, str]) -> None:
    command, sender = made
    if isinstance(command, wire.Bye):
        return
    with pytest.raises(RemoteError) as caught:
        wire.decode(wire.encode(command), "S" if sender == "C" else "C")
    assert caught.value.code == Code.UNKNOWN_COMMAND


def test_bye_from_either_side() -> None:
    assert wire.decode(wire.encode(wire.Bye()), "S") == wire.Bye()


def test_what_is_at_its_default_stays_at_home() -> None:
    assert wire.unpack(wire.encode(wire.Ping())[1]) == {"c": "PING"}
    assert wire.unpack(wire.encode(wire.Ack([], as_="expired"))[1]) == {"c": "ACK", "ranges": [], "as": "expired"}
    assert len(wire.encode(wire.Rep(1, 200))) == 2


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_octets(frames: list[bytes]) -> None:
    for sender in ("C", "S"):
        try:
            wire.decode([wire.SIGNATURE, *frames], sender)
        except RemoteError as error:
            assert error.code in (400, 405, 413)


def test_unknown_keys_are_ignored() -> None:
    assert wire.decode([wire.SIGNATURE, wire.pack({"c": "PING", "k": 4, "later": [1]})], "C") == wire.Ping(4)


def test_a_head_that_is_too_big_is_not_sent() -> None:
    with pytest.raises(LocalError, match="4096"):
        wire.encode(wire.Qry(1, "x", {"a": "y" * 4100}))
    with pytest.raises(LocalError):
        wire.pack({"a": object()})
    with pytest.raises(LocalError):
        wire.pack({"a": 2**64})


def test_answers_may_be_longer_than_questions() -> None:
    assert wire.decode(wire.encode(wire.Done(1, 404, 0, "x" * 2048)), "S").text == "x" * 2048
    with pytest.raises(RemoteError):
        wire.decode([wire.SIGNATURE, wire.pack({"c": "DONE", "r": 1, "code": 1, "seq": 0, "text": "x" * 2049})], "S")
    with pytest.raises(RemoteError):
        wire.decode([wire.SIGNATURE, wire.pack({"c": "PING", "st": "x" * 513})], "C")


@given(st.lists(st.integers(0, 200), unique=True, max_size=200).map(sorted))
def test_ranges(numbers: list[int]) -> None:
    made = wire.ranges(numbers)
    assert wire.CHECKS["ranges"](made)
    told = [n for first, last in made for n in range(first, last + 1)]
    assert told == numbers[: len(told)]
    assert len(made) == wire.WINDOW or told == numbers


def test_digest_and_chain() -> None:
    one = wire.digest("send", "id", {"to": ["a"]}, b"x")
    assert len(one) == 16
    others = [wire.digest("sent", "id", {"to": ["a"]}, b"x"), wire.digest("send", "ie", {"to": ["a"]}, b"x"),
              wire.digest("send", "id", {"to": ["b"]}, b"x"), wire.digest("send", "id", {"to": ["a"]}, b"y")]  # fmt: skip
    assert one not in others
    record = (1, 2, "ob", 3, "send", one, 200, b"reply", "api@alpha")
    links = {journal.chain(bytes(16), *record), journal.chain(one, *record)}
    for i, other in enumerate((2, 3, "o2", 4, "sent", one[::-1], 202, b"replY", "web@alpha")):
        links.add(journal.chain(bytes(16), *(other if i == j else part for j, part in enumerate(record))))  # type: ignore[arg-type]
    assert len(links) == 11, "nothing of a record is left out"


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (None, True),
        ([1, "a", {"b": [True]}], True),
        (1.5, True),
        (float("nan"), False),
        (float("inf"), False),
        (b"x", False),
        ({1: 2}, False),
        ([[[[[[[1]]]]]]], False),
        ((1,), False),
    ],
)
def test_plain(value: Any, good: bool) -> None:
    assert is_plain(value) is good


def test_clip() -> None:
    assert wire.clip("abc", 3) == "abc" and wire.clip("abcd", 3) == "ab…"


def test_fields_of_the_table_are_those_of_the_classes() -> None:
    for spec in wire.COMMANDS.values():
        assert [f.attr for f in spec.fields] == [f.name for f in fields(spec.cls) if f.name != "body"]
