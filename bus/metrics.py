"""What the broker measures, in the text format of Prometheus. Pure.

The table below is the list; docs/metrics.md shows it, and a test compares the two. Names nobody: whoever may connect
to the port learns how much happens, not between whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STEPS = ("stored", "held", "refused", "offered", "injected", "acked", "answered", "expired", "failed")
PEER_EVENTS = ("open", "lost", "gone", "name", "status")
STATE_EVENTS = ("set", "delete")
PRESENCES = ("open", "lost", "gone")
FAULTS = (
    "malformed",
    "unsigned",
    "unknown",
    "unsendable",
    "silent",
    "undone",
    "resync",
    "rate",
    "hops",
    "thanks",
    "wakes",
    "ack ignored",
    "receipt unknown",
    "receipt ambiguous",
    "receipt not offered",
    "settle ambiguous",
    "hello refused",
    "door refused",
    "enrolment refused",
    "enrolment noise",
    "enrolment port",
    "revoked",
    "ended",
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: its name, type, help, and the label its samples have, if any."""

    name: str
    type: str  # "counter" | "gauge"
    help: str
    label: str = ""


METRICS = (
    Metric("talkbus_build_info", "gauge", "1, with the version of the broker as a label.", "version"),
    Metric("talkbus_start_time_seconds", "gauge", "When the broker started, in seconds since 1970."),
    Metric("talkbus_message_steps_total", "counter", "Steps of copies of messages since the start.", "step"),
    Metric("talkbus_peer_events_total", "counter", "Events of sessions since the start.", "event"),
    Metric("talkbus_state_writes_total", "counter", "Values of shared state written or removed.", "event"),
    Metric("talkbus_events_total", "counter", "Events of activity since the start, markers among them."),
    Metric("talkbus_operations_total", "counter", "Operations in the journal, over all starts of the broker."),
    Metric("talkbus_faults_total", "counter", "What went wrong since the start, by kind.", "fault"),
    Metric("talkbus_sessions", "gauge", "Open connections, those that only look among them."),
    Metric("talkbus_mailboxes", "gauge", "Mailboxes, by presence of their session.", "presence"),
    Metric("talkbus_unread_messages", "gauge", "Copies that wait to be shown."),
    Metric("talkbus_unread_bytes", "gauge", "Text of the copies that wait, in bytes."),
    Metric("talkbus_oldest_unread_seconds", "gauge", "How long the longest waiting copy has waited; 0 for none."),
    Metric("talkbus_state_keys", "gauge", "Keys of shared state."),
    Metric("talkbus_disk_writable", "gauge", "1 while the disk takes writes."),
    Metric("talkbus_store_messages", "gauge", "Messages on disk, as of the last minute something was written."),
    Metric("talkbus_store_bytes", "gauge", "Size of the database with its log, as of then, in bytes."),
    Metric("process_cpu_seconds_total", "counter", "CPU time the broker has used, in seconds."),
    Metric("process_resident_memory_bytes", "gauge", "Memory of the broker, in bytes."),
    Metric("process_start_time_seconds", "gauge", "When the process started, in seconds since 1970."),
)

Samples = Mapping[str, float | Mapping[str, float]]


def samples(stats: Mapping[str, Any], version: str) -> dict[str, float | dict[str, float]]:
    """The values of every `talkbus_` family, from an answer to the query `stats`."""
    told = _counts(stats.get("told"))
    counters = _counts(stats.get("counters"))
    presence = _counts(stats.get("presence"))
    oldest, now = _num(stats.get("oldest")), _num(stats.get("now"))
    return {
        "talkbus_build_info": {version: 1},
        "talkbus_start_time_seconds": _num(stats.get("started")) / 1000,
        "talkbus_message_steps_total": {step: told.get(f"msg.{step}", 0) for step in STEPS},
        "talkbus_peer_events_total": {event: told.get(f"peer.{event}", 0) for event in PEER_EVENTS},
        "talkbus_state_writes_total": {event: told.get(f"state.{event}", 0) for event in STATE_EVENTS},
        "talkbus_events_total": sum(told.values()),
        "talkbus_operations_total": _num(stats.get("seq")),
        "talkbus_faults_total": {fault.replace(" ", "_"): counters.get(fault, 0) for fault in FAULTS},
        "talkbus_sessions": _num(stats.get("sessions")),
        "talkbus_mailboxes": {name: presence.get(name, 0) for name in PRESENCES},
        "talkbus_unread_messages": _num(stats.get("unread")),
        "talkbus_unread_bytes": _num(stats.get("octets")),
        "talkbus_oldest_unread_seconds": max(0.0, now - oldest) / 1000 if oldest else 0.0,
        "talkbus_state_keys": _num(stats.get("state")),
        "talkbus_disk_writable": float(stats.get("writable") is True),
        "talkbus_store_messages": counters.get("disk messages", 0),
        "talkbus_store_bytes": counters.get("disk octets", 0),
    }


def exposition(values: Samples) -> str:
    """The text: HELP, TYPE and samples of each family that has a value, in the order of the table."""
    return "".join(line + "\n" for metric in METRICS if metric.name in values for line in _family(metric, values))


def _family(metric: Metric, values: Samples) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.type}"
    value = values[metric.name]
    if isinstance(value, Mapping):
        for label, number in value.items():
            yield f'{metric.name}{{{metric.label}="{_escaped(label)}"}} {_written(number)}'
    else:
        yield f"{metric.name} {_written(value)}"


def _written(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(float(number))


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _counts(value: Any) -> dict[str, float]:
    return {str(key): _num(number) for key, number in value.items()} if isinstance(value, Mapping) else {}


def _num(value: Any) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0
