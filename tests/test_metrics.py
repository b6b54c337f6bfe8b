"""metrics: names by convention, a stated list, and text that Prometheus's own parser reads."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bus.metrics import FAULTS, METRICS, STEPS, exposition, samples

ROOT = Path(__file__).parents[1]
STATS = {
    "now": 10_500,
    "started": 1_500,
    "oldest": 8_000,
    "seq": 7,
    "sessions": 3,
    "presence": {"open": 2, "gone": 1},
    "unread": 4,
    "octets": 99,
    "state": 5,
    "writable": True,
    "told": {"msg.stored": 6, "msg.injected": 2, "peer.open": 2, "sync": 1, "state.set": 5, "bus.start": 1},
    "counters": {"malformed": 1, "ack ignored": 2, "disk messages": 6, "disk octets": 4096},
}


def parsed(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_values() -> None:
    found = parsed(exposition(samples(STATS, '1.0"\\\n')))
    assert found["talkbus_message_steps_total", "stored"] == 6 and found["talkbus_message_steps_total", "held"] == 0
    assert found["talkbus_oldest_unread_seconds", ""] == 2.5 and found["talkbus_start_time_seconds", ""] == 1.5
    assert found["talkbus_events_total", ""] == 17 and found["talkbus_operations_total", ""] == 7
    assert found["talkbus_mailboxes", "open"] == 2 and found["talkbus_mailboxes", "lost"] == 0
    assert found["talkbus_faults_total", "ack_ignored"] == 2 and found["talkbus_faults_total", "rate"] == 0
    assert found["talkbus_store_bytes", ""] == 4096 and found["talkbus_disk_writable", ""] == 1
    assert found["talkbus_build_info", '1.0"\\\n'] == 1, "labels are escaped"


def test_of_an_empty_or_odd_answer() -> None:
    found = parsed(exposition(samples({"unread": "x", "told": [], "writable": "yes", "oldest": True}, "")))
    assert found["talkbus_unread_messages", ""] == 0 and found["talkbus_disk_writable", ""] == 0
    assert found["talkbus_oldest_unread_seconds", ""] == 0


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"(talkbus|process)_[a-z_]+", metric.name)
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric
        assert metric.help.endswith(".") and "\n" not in metric.help
        assert not re.search(r"_(ms|kb|mb|minutes)(_|$)", metric.name), "base units"
    assert len({m.name for m in METRICS}) == len(METRICS)


def test_each_family_is_told_once_with_help_and_type() -> None:
    text = exposition(samples(STATS, "1"))
    for metric in METRICS:
        if metric.name.startswith("talkbus_"):
            assert text.count(f"# HELP {metric.name} ") == text.count(f"# TYPE {metric.name} {metric.type}\n") == 1
    assert text.endswith("\n")


def test_the_list_in_the_docs_is_the_list() -> None:
    written = re.findall(
        r"^\| `([a-z_]+)(?:\{([a-z]+)\})?` \| (\w+) \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    assert written == [(m.name, m.label, m.type, m.help) for m in METRICS]


def test_every_fault_that_is_counted_is_in_the_list() -> None:
    counted = set()
    for path in (ROOT / "bus").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "count":
                counted |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "trip":
                counted |= {a.value for a in node.args if isinstance(a, ast.Constant)}
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                whose = node.value.attr if isinstance(node.value, ast.Attribute) else ""
                counted |= {node.slice.value} if whose == "counters" else set()
    counted = {what for what in counted if what.replace(" ", "").isalpha()}  # str.count is meant otherwise
    assert counted <= set(FAULTS), "a fault the metrics do not know"
    assert set(FAULTS) <= counted


def test_every_step_of_a_message_is_a_label() -> None:
    from bus.activity import EVENTS

    assert set(STEPS) == set(EVENTS["msg"].split())
