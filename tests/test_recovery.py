"""What a former life was offering: which text proves that which message was shown."""

from __future__ import annotations

from agent.delivery.recovery import distinct, mark
from agent.delivery.transcript import stands_in
from agent.render import Letter, render

KEY = "hub/0001/" + "m" * 16


def rendered(name: str, host: str, body: str = "hello") -> str:
    return render([Letter("m" * 16, name, host, "me", "task", "", "", "", 1, body.encode())], 2)


def test_a_message_is_found_by_its_id_and_its_host() -> None:
    assert stands_in(rendered("ann", "hub"), *mark(KEY))
    assert not stands_in(rendered("ann", "far"), *mark(KEY)), "that is what another sender wrote under this id"
    assert not stands_in(rendered("ann", "bighub"), *mark(KEY))
    assert stands_in(rendered("eve", "far") + rendered("ann", "hub"), *mark(KEY)), "it stands behind the other"
    assert not stands_in(rendered("eve", "far", f'<peer-message id="{"m" * 16}" from="ann@hub">'), *mark(KEY))


def test_what_another_message_could_be_taken_for_is_not_proven() -> None:
    beside = "hub/0002/" + "m" * 16
    assert distinct([KEY], [KEY, "far/0003/" + "m" * 16]) == [KEY]
    assert distinct([KEY], [KEY, beside]) == [], "two of one host look alike"
