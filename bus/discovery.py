"""Hubs that let themselves be found on the local network, by mDNS; off unless a person asks for it.

What is announced is public: label, port, fingerprint. It lets nobody in: whoever joins needs an invitation, and the
hub must prove the key that stands in it. Needs the optional package zeroconf; must not know the roll's file.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bus.errors import LocalError
from bus.roll import Roll, fingerprint

log = logging.getLogger("talkbus.broker")

SERVICE = "_talkbus._tcp.local."
LOOK_MS = 3000
FOUND_MAX = 64  # anybody on the network may announce anything
TEXT_MAX = 64


@dataclass(frozen=True, slots=True)
class Found:
    """A hub, as it says of itself; nothing of it is proved."""

    host: str
    address: str
    port: int
    fingerprint: str

    def told(self) -> dict[str, Any]:
        """For a listing."""
        return asdict(self)


@contextmanager
def announced(roll: Roll, port: int) -> Iterator[None]:
    """The broker with this roll, announced at `port` as long as the context lasts.

    That it cannot be announced is logged, and hurts nobody.
    """
    try:
        zeroconf = _zeroconf()
    except LocalError as error:
        log.warning("! %s", error)
        yield
        return
    own = roll.find(roll.own)
    label = own.label if own is not None else "hub"
    mark = fingerprint(roll.own)
    info = zeroconf.ServiceInfo(
        SERVICE,
        f"{label} {mark[:9]}.{SERVICE}",
        port=port,
        properties={"label": label, "fingerprint": mark, "v": "1"},
        server=f"{label}.local.",
        parsed_addresses=_own_addresses(),
    )
    made: list[Any] = []

    def announce() -> None:  # it probes the network for most of a second, for which the broker does not wait
        try:
            made.append(zeroconf.Zeroconf())
            made[0].register_service(info, allow_name_change=True)
            log.info("%% announced as %s", info.name)
        except (OSError, zeroconf.Error) as error:
            log.warning("! the bus cannot be announced: %s", error)

    thread = threading.Thread(target=announce, name="announce", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(5)
        for one in made:
            one.close()


def browse(seconds: float) -> list[Found]:
    """The hubs that are announced, looked for so many seconds. LocalError without zeroconf, or without a network."""
    zeroconf = _zeroconf()
    names: list[str] = []

    class Listener:
        def add_service(self, _zc: Any, _kind: str, name: str) -> None:
            if name not in names and len(names) < FOUND_MAX:
                names.append(name)

        update_service = add_service

        def remove_service(self, _zc: Any, _kind: str, name: str) -> None:
            if name in names:
                names.remove(name)

    try:
        zc = zeroconf.Zeroconf()
    except OSError as error:
        raise LocalError(f"the network cannot be asked: {error.strerror} (is there one?)") from error
    try:
        zeroconf.ServiceBrowser(zc, SERVICE, Listener())
        threading.Event().wait(seconds)
        infos = (zc.get_service_info(SERVICE, name, LOOK_MS) for name in list(names))
        found = [one for info in infos if info is not None and (one := _found(info)) is not None]
    finally:
        zc.close()
    return sorted(found, key=lambda one: (one.host, one.address))


def _found(info: Any) -> Found | None:
    texts = {key: value for key, value in (info.properties or {}).items() if isinstance(value, bytes)}
    label, mark = (texts.get(key, b"").decode("utf-8", "replace")[:TEXT_MAX] for key in (b"label", b"fingerprint"))
    addresses = info.parsed_addresses()
    if not addresses or not mark or not 0 < (info.port or 0) < 65536:
        return None
    return Found(label or "?", str(addresses[0]), int(info.port), mark)


def _own_addresses() -> list[str]:
    import psutil  # type: ignore[import-untyped]

    found = [
        str(entry.address)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not str(entry.address).startswith("127.")
    ]
    return found or ["127.0.0.1"]


def _zeroconf() -> Any:
    try:
        import zeroconf
    except ImportError as error:
        raise LocalError("hubs are found with the package zeroconf (pip install 'talkbus[mdns]')") from error
    return zeroconf
