"""The hub this machine has joined, if it has: what `lan join` left, and everybody on this machine reads.

A setting (`hub` in config.toml, TALKBUS_HUB) goes before it. Agents read it before every connection, so those that
run already find the hub too. Must not know sockets or the protocol.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bus.config import Config, Home, Hub, is_key, parse_hub
from bus.errors import ConfigError
from bus.private import private_dir, write_private


@dataclass(frozen=True, slots=True)
class Joined:
    """A joined hub: where it is, the key it must prove, what this machine is called there, since when (ms)."""

    host: str
    port: int
    events: int
    key: str
    label: str
    since: int

    @property
    def hub(self) -> Hub:
        """As clients want it."""
        return Hub(bracketed(self.host), self.port, self.key, self.events)

    @property
    def where(self) -> str:
        """For people."""
        return f"{bracketed(self.host)}:{self.port}"


def hub(home: Home, config: Config) -> Hub | None:
    """The broker of another machine that this one uses; None when it has its own.

    ConfigError when it has joined one and nobody can tell which: then it must not start a bus of its own.
    """
    if config.hub:
        return parse_hub(config.hub)
    found = joined(home)
    return found.hub if found else None


def joined(home: Home) -> Joined | None:
    """What the join left; None when this machine has not joined. ConfigError when the file is broken."""
    path = _file(home)
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read (join again, or: talkbus lan leave)") from error
    wanted = {"host": str, "port": int, "events": int, "key": str, "label": str, "since": int}
    if not isinstance(fields, dict) or any(type(fields.get(name)) is not kind for name, kind in wanted.items()):
        raise ConfigError(f"{path} is not what a join leaves (join again, or: talkbus lan leave)")
    made = Joined(**{name: fields[name] for name in wanted})
    if not (is_key(made.key) and made.host and 0 < made.port < 65536 and 0 < made.events < 65536):
        raise ConfigError(f"{path} names no hub (join again, or: talkbus lan leave)")
    return made


def remember(home: Home, hub: Joined) -> None:
    """Use this hub from now on. StoreError or ConfigError when that cannot be written."""
    private_dir(home.state)
    write_private(_file(home), json.dumps(asdict(hub), indent=1).encode("utf-8") + b"\n")


def forget(home: Home) -> bool:
    """Use a bus of its own again; False when no hub was joined."""
    with suppress(FileNotFoundError):
        _file(home).unlink()
        return True
    return False


def bracketed(host: str) -> str:
    """A host as it stands in an endpoint: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _file(home: Home) -> Path:
    return home.state / "hub.json"
