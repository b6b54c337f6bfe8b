"""The frame of the benchmarks, and the shape of what they print. No figure is asserted: machines differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import loss, loss_peers
from bench.aims import AIMS
from bench.compare import compare, read
from bench.fill import fill
from bench.frame import BENCHES, NOTES, Options, Row, bench, document, median, number, quantile, ratios, table
from bench.machine import describe, sentence
from bench.results import write
from bench.system import System
from bench.systems import present
from bench.workers import Worker, WorkerFailed
from bus.store import Store

ROOT = Path(__file__).resolve().parent.parent


def row(system: str, value: float, metric: str = "m") -> Row:
    return Row("b", "c", system, metric, value, "1/s")


def test_a_ratio_is_ours_over_theirs() -> None:
    rows = [row("talkbus", 50), row("raw-zmq", 100), row("other", 25), row("raw-zmq", 7, "theirs alone")]
    assert list(ratios(rows)) == [
        Row("b", "c", "talkbus/raw-zmq", "m", 0.5, "x"),
        Row("b", "c", "talkbus/other", "m", 2.0, "x"),
    ]


def test_a_ratio_has_no_ratio() -> None:
    rows = [row("talkbus", 50), row("raw-zmq", 100)]
    assert list(ratios([*rows, *ratios(rows)])) == list(ratios(rows))


def test_a_ratio_to_nothing_is_left_out() -> None:
    assert list(ratios([row("talkbus", 50), row("raw-zmq", 0)])) == []


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0], 0.99, 1.0),
        ([4, 1, 3, 2], 0.5, 2),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 1.0, 100),
        ([1, 2], 0.0, 1),
    ],
)
def test_quantile(values: list[float], share: float, expected: float) -> None:
    assert quantile(list(values), share) == expected


def test_median() -> None:
    assert (median([3, 1, 2]), median([4, 1, 2, 3])) == (2, 2.5)


def test_numbers_for_people() -> None:
    assert [number(x) for x in (12345.6, 99.94, 12.34, 1.234)] == ["12,346", "99.9", "12.3", "1.23"]


def test_the_table_is_aligned() -> None:
    lines = table([row("talkbus", 12345.6), row("raw-zmq", 1)]).splitlines()
    assert lines[1].index("12,346") + 6 == lines[2].index(" 1 ") + 2


def test_the_document_is_plain() -> None:
    made = document({"cores": 2}, ["a note"], [row("talkbus", 1.5)])
    assert json.loads(json.dumps(made))["rows"] == [
        {"bench": "b", "case": "c", "system": "talkbus", "metric": "m", "value": 1.5, "unit": "1/s"}
    ]


def test_a_name_is_registered_once() -> None:
    def run(_options: Options) -> list[Row]:
        return []

    try:
        bench("only-here")(run)
        with pytest.raises(AssertionError):
            bench("only-here")(run)
    finally:
        BENCHES.pop("only-here", None)


def test_the_machine_is_described() -> None:
    found = describe()
    assert {"cores", "cpu", "python", "libzmq", "sqlite", "file_system", "fdatasync_us"} <= found.keys()
    assert found["python"] in sentence(found)


def raises(_pipe: object) -> None:
    raise ValueError("as it was told")


def test_a_worker_that_fails_is_heard() -> None:
    with Worker("bad", raises) as worker, pytest.raises(WorkerFailed, match="as it was told"):
        worker.answer("ready", 20)


# -- what is left out, compared, written down ------------------------------------------------------------------------


def test_what_is_not_installed_is_left_out_with_a_word() -> None:
    def never() -> None:
        raise AssertionError("it was started")

    here = System("here", "", never, lambda: "")  # type: ignore[arg-type]
    gone = System("gone", "", never, lambda: "apt-get install gone")  # type: ignore[arg-type]
    try:
        assert present([gone, here]) == [here]
        assert "left out: gone (apt-get install gone)" in NOTES
    finally:
        NOTES.clear()


def test_compare_tells_the_change(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(document({}, [], [row("talkbus", 50), row("raw-zmq", 9, "gone")])))
    told = compare(read(str(path)), [row("talkbus", 75), row("new", 1)])
    assert told.splitlines()[1].split() == ["b", "c", "m", "talkbus", "50", "75", "1.50x"]
    assert told.splitlines()[-1] == "1 figures in both, 1 only in this run, 1 only in the earlier one"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{}], "machine": {}, "notes": []}', '{"rows": []}'])
def test_compare_refuses_what_is_no_result(tmp_path: Path, text: str) -> None:
    path = tmp_path / "before.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no result"):
        read(str(path))


def test_results_name_the_machine_and_say_what_was_not_met(tmp_path: Path) -> None:
    rows = [row("talkbus", 50), row("raw-zmq", 100), Row("loss", "many", "talkbus", "lost", 3.0, "")]
    write(document(describe(), ["left out: x (y)"], rows), [*rows, *ratios(rows)], tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert describe()["python"] in text and "python -m bench" in text and "left out: x (y)" in text
    assert "| c | m | 50 1/s | 100 1/s (0.50x) |" in text
    assert "| lost under SIGKILL and cut links | ≤ 0 | 3 | **not met** |" in text
    assert "| twice under SIGKILL and cut links | ≤ 0 | not measured |  |" in text


def test_an_aim_is_a_bound_in_its_direction() -> None:
    assert AIMS[0].sign == ">=" and AIMS[0].met(2.0) and not AIMS[0].met(1.99)
    assert AIMS[3].sign == "<=" and AIMS[3].met(1.2) and not AIMS[3].met(1.21)


# -- loss ------------------------------------------------------------------------------------------------------------


def shown(ident: str, number_: int, repeat: bool = False) -> list[object]:
    return ["shown", ident, number_, "from-0", repeat]


SENT = [["accepted", "a", 1], ["accepted", "b", 2], ["accepted", "c", 3]]
GOOD = [["life", 1], shown("a", 1), ["proved", "a"], shown("b", 2), ["proved", "b"], shown("c", 3)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (GOOD, (0, 0, 0, 0)),
        (GOOD[:-1], (1, 0, 0, 0)),
        ([*GOOD, shown("c", 3)], (0, 1, 0, 0)),
        ([*GOOD, ["life", 2], shown("c", 3)], (0, 1, 0, 0)),  # after a crash, but without the mark
        ([*GOOD, ["life", 2], shown("c", 3, True)], (0, 0, 0, 1)),
        ([*GOOD, shown("c", 3, True)], (0, 1, 0, 0)),  # marked, but in the same life
        ([*GOOD, ["life", 2], shown("a", 1, True)], (0, 1, 0, 0)),  # marked, but after its proof
        ([["life", 1], shown("b", 2), shown("a", 1), shown("c", 3)], (0, 0, 1, 0)),
    ],
)
def test_the_judge_of_a_loss(told: list[list[object]], expected: tuple[int, ...]) -> None:
    found = loss.judge([SENT], [told], 3)
    assert (found.lost, found.twice, found.reordered, found.marked) == expected


def test_a_batch_its_sender_did_not_live_to_tell_counts() -> None:
    assert loss.judge([SENT[:1]], [GOOD], 3).lost == 0
    assert loss.judge([SENT[:1]], [GOOD[:-1]], 3).lost == 1


def test_the_judge_of_the_others() -> None:
    assert loss_peers.compare([1, 2, 3, 4], [1, 3, 2, 2]) == (1, 1, 1)
    assert loss_peers.compare([1, 2], [1, 2, 3]) == (0, 0, 0)


# -- growth ----------------------------------------------------------------------------------------------------------


def test_a_filled_store_is_one_the_broker_takes(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    fill(path, 300)
    fill(path, 50, indexed=False)
    store = Store.open(path)
    try:
        assert store.indexed() == (300, 350)
        world = store.load()
        assert world.seq == 350 and {m.name for m in world.mailboxes.values()} == {"sender-0", "recipient"}
        while store.index_piece():
            continue
        assert store.indexed() == (350, 350) and store.sizes()["deliveries"] == 350
    finally:
        store.close()
