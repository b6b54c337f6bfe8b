"""What the hub's commands of `talkbus lan` do step by step: bind anew, tell addresses, find the way here.

Knows settings, the broker's process and its queries; prints nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from agent.cli.call import Call, fetch

if TYPE_CHECKING:
    from bus.daemon import Record

PORT_S = 5.0
EVERYWHERE = "*"
HERE = "127.0.0.1"


def own_bus(call: Call) -> None:
    """LocalError on a machine that uses another one's bus: there is nothing to open here."""
    from bus.errors import LocalError

    hub = call.hub
    if hub is not None:
        raise LocalError(
            f"this machine uses the hub at {hub.host}:{hub.port} (run this there, or: talkbus lan leave)"
        )


def machines(call: Call) -> list[dict[str, Any]]:
    """The rows of the query. Unreachable, Refused."""
    with call.view() as view:
        return [value for value, _ in fetch(view, "machines", {})]


def rebound(call: Call, values: dict[str, str]) -> None:
    """Set these and have the broker run with them. When it does not come up with them, all is set back."""
    from bus.config import load, set_value
    from bus.daemon import clear_stop, ensure_broker, stop_broker
    from bus.errors import BusError, LocalError

    before = load(call.home)
    for name in values:
        if before.origin(name) == "environment" and str(before.value(name)) != values[name]:
            raise LocalError(
                f"{name} is set by the environment, which goes before config.toml (unset it, then again)"
            )
    former = {name: str(before.value(name)).lower() for name in values}
    values = {name: value for name, value in values.items() if former[name] != value}
    if not values:
        return
    for name, value in values.items():
        set_value(call.home, name, value)
    stop_broker(call.home)
    clear_stop(call.home)
    try:
        ensure_broker(call.home)
    except BusError:
        for name in values:
            set_value(call.home, name, former[name])
        ensure_broker(call.home)
        raise


def addresses(wanted: str) -> list[str]:
    """The addresses at which others may reach a broker that listens at `wanted`; those of a LAN first."""
    import psutil  # type: ignore[import-untyped]

    if wanted not in (EVERYWHERE, "0.0.0.0", "::", "[::]"):
        return [wanted]
    four, six = [], []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            text = str(entry.address)
            if entry.family.name == "AF_INET" and not text.startswith("127."):
                four.append(text)
            elif (
                entry.family.name == "AF_INET6" and wanted in ("::", "[::]") and not text.startswith(("::1", "fe80"))
            ):
                six.append(text)
    return sorted(four, key=lambda a: not a.startswith(("192.168.", "10.", "172."))) + six


def loopback(bind: str) -> bool:
    return bind.startswith("127.") or bind in ("localhost", "::1", "[::1]", "lo")


def port_of(record: Record) -> int:
    return int(record.router.rpartition(":")[2])


def reachable(call: Call) -> dict[str, Any]:
    """What `lan up` tells. LocalError when the broker does not listen as it was told to."""
    from bus.errors import LocalError

    listed = [row for row in machines(call) if "host" in row]
    own = next(row for row in listed if row["hub"])
    bind, _, port = str(own["listens"]).rpartition(":")
    if loopback(bind):
        raise LocalError(
            f"the broker listens at {bind} only, as its environment says (unset TALKBUS_BIND, and again)"
        )
    return {
        "host": own["host"],
        "listens": own["listens"],
        "addresses": addresses(bind),
        "port": int(port),
        "events": int(port) + 1,
        "fingerprint": own["fingerprint"],
        "machines": len(listed) - 1,
    }


def by_whom(number: int) -> str:
    paired = {0: "no machine is paired yet", 1: "one machine is paired"}.get(number, f"{number} machines are paired")
    return f"paired machines only; {paired}"


def way_here(call: Call, given: str) -> tuple[str, tuple[int, int], str]:
    """Host, the two ports and the key of the hub, as another machine wants them."""
    from bus.daemon import ensure_broker
    from bus.errors import LocalError

    hub = call.hub
    if hub is not None:
        return hub.host.strip("[]"), (hub.port, hub.events or hub.port + 1), hub.key
    record = ensure_broker(call.home)
    own = next(row for row in machines(call) if row.get("hub"))
    bind = str(own["listens"]).rpartition(":")[0]
    if loopback(bind) and not given:
        raise LocalError("the bus listens on this machine only (talkbus lan up)")
    found = [] if given else addresses(bind)
    if not found and not given:
        raise LocalError("this machine has no address in a network (give one: talkbus lan invite --host HOST)")
    port = port_of(record)
    return (found[0].strip("[]") if found else ""), (port, port + 1), record.key


def enrolment_port_of(call: Call) -> int:
    """The port the broker bound for it, which it does a moment after its answer."""
    from bus.errors import LocalError

    end = time.monotonic() + PORT_S
    while time.monotonic() < end:
        port = next((row["invitation"]["port"] for row in machines(call) if "invitation" in row), None)
        if port:
            return int(port)
        if port is None:
            raise LocalError("the broker could not bind a port for it (see its log, and try again)")
        time.sleep(0.02)
    raise LocalError("the broker has not bound a port for it (see its log, and try again)")
