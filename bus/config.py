"""Where everything is kept, what may be set, and what is set: directories, config.toml, environment.

The environment goes before the file, the file before the default. config.toml belongs to the person who
wrote it: a setting is changed by editing its line, and every other line stays as it is.

Every call of the command loads this, so what is heavy is imported where it is needed. Must not know
sockets, the broker or the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bus.errors import ConfigError

if TYPE_CHECKING:
    from types import MappingProxyType

Value = str | int | bool
Origin = Literal["default", "file", "environment"]

# The alphabet of Z85 (ZeroMQ RFC 32); its place is the digit's value.
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"

LABEL_MAX = 32  # characters of a machine's label


@dataclass(frozen=True, slots=True)
class Home:
    """The three directories of one bus and what stands in them. Nothing is made by asking."""

    config: Path
    state: Path
    runtime: Path

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def keys(self) -> Path:
        return self.config / "keys"

    @property
    def bus_db(self) -> Path:
        return self.state / "bus.db"

    @property
    def agents(self) -> Path:
        return self.state / "agents"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def lock(self) -> Path:
        """Held by the one broker of this state directory."""
        return self.state / "broker.lock"

    @property
    def stop_mark(self) -> Path:
        """There after `talkbus down`, until `talkbus up`."""
        return self.state / "stopped"

    @property
    def record(self) -> Path:
        """What the running broker published: endpoints, key, pid with start time."""
        return self.runtime / "bus.json"

    @property
    def maildirs(self) -> Path:
        return self.runtime / "maildirs"

    @property
    def root(self) -> Path | None:
        """The value of TALKBUS_HOME that leads here; None for the platform's own directories."""
        root = self.state.parent
        return root if self == _under(root) else None


def home(environ: Mapping[str, str] = os.environ) -> Home:
    """The directories: all under TALKBUS_HOME where that is set, else the platform's own.

    The platform's runtime directory is made here to see whether it can be; else `run` in the state
    directory takes its place. It is looked up in the process's own environment.
    """
    root = environ.get("TALKBUS_HOME", "")
    if root:
        return _under(Path(os.path.abspath(os.path.expanduser(root))))
    import warnings

    from platformdirs import PlatformDirs

    from bus.private import private_dir

    dirs = PlatformDirs("talkbus", appauthor=False)
    state = Path(dirs.user_state_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unset XDG_RUNTIME_DIR is no news to the person who typed a command
        try:
            runtime = private_dir(Path(dirs.user_runtime_dir))
        except (ConfigError, OSError):
            runtime = state / "run"
    return Home(Path(dirs.user_config_dir), state, runtime)


def _under(root: Path) -> Home:
    return Home(root / "config", root / "state", root / "run")


@dataclass(frozen=True, slots=True)
class Setting:
    """One known setting: its dotted name in config.toml, default, one line of help, bounds."""

    name: str
    default: Value
    help: str
    env: str = ""
    choices: tuple[str, ...] = ()
    low: int = 0
    high: int = 1_000_000

    @property
    def kind(self) -> type[Value]:
        return type(self.default)

    def parse(self, text: str) -> Value:
        """The value written as `text` in an environment or a command line; ValueError says what is wanted."""
        if self.kind is bool:
            return self.check({"true": True, "false": False}.get(text.strip().lower(), text))
        if self.kind is int:
            digits = text.strip()
            return self.check(int(digits) if digits.isascii() and digits.isdecimal() else text)
        return self.check(text)

    def check(self, value: object) -> Value:
        """`value` when it is of the type and within the bounds; ValueError says what is wanted."""
        if isinstance(value, bool) or self.kind is bool:
            if not (isinstance(value, bool) and self.kind is bool):
                raise ValueError(self.wanted)
        elif isinstance(value, int) and self.kind is int:
            if not self.low <= value <= self.high:
                raise ValueError(self.wanted)
        elif isinstance(value, str) and self.kind is str:
            if not value.isprintable() or (self.choices and value not in self.choices):
                raise ValueError(self.wanted)
            if self.name == "hub" and value:
                parse_hub(value)
            if self.name == "label" and value and not is_label(value):
                raise ValueError(f"at most {LABEL_MAX} of a-z 0-9 -")
        else:
            raise ValueError(self.wanted)
        return value

    @property
    def wanted(self) -> str:
        if self.kind is bool:
            return "true or false"
        if self.kind is int:
            return f"a whole number from {self.low} to {self.high}"
        return "one of " + ", ".join(self.choices) if self.choices else "text on one line"


_LEVELS = ("debug", "info", "warning", "error")
SETTINGS: Mapping[str, Setting] = {
    s.name: s
    for s in (
        Setting("name", "", "name of this seat; empty takes the project folder's", "TALKBUS_NAME"),
        Setting("label", "", "what this machine is called on the bus; empty takes the host's name", "TALKBUS_LABEL"),
        Setting("hub", "", "broker of another machine, as host:port#key", "TALKBUS_HUB"),
        Setting("bind", "127.0.0.1", "address the broker listens on", "TALKBUS_BIND"),
        # The event stream takes the port after it.
        Setting("port", 0, "first of two ports; 0 takes a free pair from 7717 up", "TALKBUS_PORT", high=65534),
        Setting("claude_bin", "", "the claude program; empty looks on the path", "TALKBUS_CLAUDE_BIN"),
        Setting("log.level", "info", "what the logs keep", "TALKBUS_LOG", choices=_LEVELS),
        Setting("lan.announce", False, "let 'talkbus lan find' on this network find this hub (mDNS)"),
        Setting("limits.rate", 60, "requests a second one session may sustain", low=1),
        Setting("limits.burst", 600, "requests one session may send at once", low=1),
        Setting("limits.hops", 64, "replies in a row without a person; 0 = no limit"),
        Setting("limits.thanks", 4, "messages of mere thanks back and forth; 0 = no limit"),
        Setting("limits.wakes", 60, "times an hour a session is woken; 0 = no limit"),
        Setting("metrics.port", 0, "port for Prometheus on 127.0.0.1; 0 is off", high=65535),
        Setting("prune.days", 30, "days that settled messages are kept", low=1, high=36_500),
        Setting("delivery.native", True, "deliver through the session's own inbox where there is one"),
        Setting("delivery.channel", False, "push by channel where nothing else wakes; the client has a switch, too"),
        Setting("history.share", True, "let sessions on this machine read what was said in each other"),
        Setting("history.raw", False, "let them read it with secrets, when asked to"),
    )
}


@dataclass(frozen=True, slots=True)
class Config:
    """What is set, and by whom: `origin("port")` says default, file or environment. From `load`."""

    name: str
    label: str
    hub: str
    bind: str
    port: int
    claude_bin: str
    log_level: str
    lan_announce: bool
    limits_rate: int
    limits_burst: int
    limits_hops: int
    limits_thanks: int
    limits_wakes: int
    metrics_port: int
    prune_days: int
    delivery_native: bool
    delivery_channel: bool
    history_share: bool
    history_raw: bool
    origins: MappingProxyType[str, Origin]
    unknown: tuple[str, ...]  # dotted names in the file that mean nothing here

    def value(self, name: str) -> Value:
        """The value of a setting by its dotted name; ConfigError for an unknown one."""
        value: Value = getattr(self, _find(name).name.replace(".", "_"))
        return value

    def limits(self) -> dict[str, int]:
        """The settings below `limits`, by the last part of their names."""
        return {name[7:]: int(self.value(name)) for name in SETTINGS if name.startswith("limits.")}

    def origin(self, name: str) -> Origin:
        """Where that value comes from; ConfigError for an unknown one."""
        return self.origins[_find(name).name]


@dataclass(frozen=True, slots=True)
class Hub:
    """Another machine's broker: where it listens and the public key it must prove."""

    host: str
    port: int
    key: str
    events: int = 0  # the port of activity; 0 = the one after `port`

    @property
    def endpoint(self) -> str:
        """For zmq; IPv6 addresses stand in brackets, as they were written."""
        return f"tcp://{self.host}:{self.port}"

    @property
    def activity(self) -> str:
        """The endpoint of activity."""
        return f"tcp://{self.host}:{self.events or self.port + 1}"


def is_label(text: str) -> bool:
    """Whether `text` can be the label of a machine."""
    inside = len(text) <= LABEL_MAX and all(c.isascii() and (c.isdigit() or c.islower() or c == "-") for c in text)
    return bool(text) and inside and text[0] != "-" and text[-1] != "-"


def is_key(text: str) -> bool:
    """Whether `text` can be a CURVE key: 40 characters of Z85."""
    return len(text) == 40 and all(letter in Z85 for letter in text)


def parse_hub(text: str) -> Hub:
    """Take `host:port#key` apart; ValueError says the form. The key itself may hold # and :."""
    where, _, key = text.partition("#")
    host, _, port = where.rpartition(":")
    plain = host and not any(c.isspace() or c == "/" for c in host)
    if not (plain and port.isascii() and port.isdecimal() and 0 < int(port) < 65536 and is_key(key)):
        raise ValueError("host:port#key, the key in 40 characters")
    return Hub(host, int(port), key)


def load(home: Home, environ: Mapping[str, str] = os.environ) -> Config:
    """Read config.toml, if there, and the environment; an empty variable counts as unset.

    ConfigError names the file and line, or the variable, and what is wanted there.
    """
    path = home.config_file
    text = _read(path)
    found = dict(_flat(_parse(path, text)))
    values: dict[str, Value] = {}
    origins: dict[str, Origin] = {}
    for name, setting in SETTINGS.items():
        values[name], origins[name] = setting.default, "default"
        if name in found:
            try:
                values[name], origins[name] = setting.check(found[name]), "file"
            except ValueError as error:
                from bus.toml_lines import line_of

                raise ConfigError(
                    f"{path}:{line_of(text, name)}: {name} must be {error} ({_mend(setting)})"
                ) from None
        if setting.env and environ.get(setting.env):
            try:
                values[name], origins[name] = setting.parse(environ[setting.env]), "environment"
            except ValueError as error:
                raise ConfigError(f"{setting.env} must be {error} (set it so, or unset it)") from None
    from types import MappingProxyType

    typed: dict[str, Any] = {name.replace(".", "_"): value for name, value in values.items()}
    unknown = tuple(sorted(found.keys() - SETTINGS.keys()))
    return Config(**typed, origins=MappingProxyType(origins), unknown=unknown)


def set_value(home: Home, name: str, text: str) -> Value:
    """Write one setting to config.toml, every other line kept; returns the value as it will be read.

    The new text is parsed before it replaces the old, as a file 0600. ConfigError for an unknown name,
    a value out of bounds, or a file that cannot be edited safely. Two writers at once: the later wins.
    """
    setting = _find(name)
    try:
        value = setting.parse(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be {error} ({_mend(setting)})") from None
    from bus.private import private_dir, write_private
    from bus.toml_lines import edited

    path = home.config_file
    private_dir(home.config)
    if path.is_symlink():
        raise ConfigError(f"{path} is a symlink and stays as it is (edit {path.resolve()} instead)")
    old = _read(path)
    expected = dict(_flat(_parse(path, old))) | {name: value}
    expected.pop(name.rpartition(".")[0], None)  # its table, when that was empty until now
    try:
        new = edited(old, name, _literal(value))
    except ValueError as error:
        raise ConfigError(f"{path}:{error}") from None
    if dict(_flat(_parse(path, new))) != expected:
        raise ConfigError(f"{path} cannot be edited safely (write {name} = {_literal(value)} by hand)")
    write_private(path, new.encode("utf-8"))
    return value


def _find(name: str) -> Setting:
    if name in SETTINGS:
        return SETTINGS[name]
    import difflib

    nearest = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.0)[0]
    raise ConfigError(f"there is no setting {name!r} (did you mean {nearest}?)")


def _mend(setting: Setting) -> str:
    example = {"hub": "HOST:PORT#KEY"}.get(setting.name, str(setting.default).lower() or "TEXT")
    return f"for example: talkbus config set {setting.name} {example}"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 (save it as UTF-8)") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror} (make it a file you may read)") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    if not text:
        return {}
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error} (mend that line)") from error


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'  # printable only: see Setting.check
    return str(value).lower()


assert {f.name for f in fields(Config)} > {name.replace(".", "_") for name in SETTINGS}
