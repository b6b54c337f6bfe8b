"""config: where things are, which value wins, and editing that keeps a person's file a person's file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bus.config import SETTINGS, Home, home, is_key, load, parse_hub, set_value
from bus.errors import ConfigError

KEY = "a#:" + "b" * 37
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bus(tmp_path: Path) -> Home:
    return home({"TALKBUS_HOME": str(tmp_path / "bus")})


def write(bus: Home, text: str) -> None:
    bus.config.mkdir(parents=True, exist_ok=True)
    bus.config_file.write_bytes(text.encode())


def test_one_root_holds_everything_and_nothing_is_made(tmp_path: Path, bus: Home) -> None:
    root = tmp_path / "bus"
    assert bus == Home(root / "config", root / "state", root / "run")
    assert bus.root == root
    assert (bus.config_file, bus.keys) == (root / "config/config.toml", root / "config/keys")
    assert (bus.bus_db, bus.agents, bus.logs) == (root / "state/bus.db", root / "state/agents", root / "state/logs")
    assert (bus.record, bus.maildirs) == (root / "run/bus.json", root / "run/maildirs")
    assert (bus.lock, bus.stop_mark) == (root / "state/broker.lock", root / "state/stopped")
    assert not root.exists()


def test_a_relative_root_is_made_absolute() -> None:
    assert home({"TALKBUS_HOME": "here"}).config == Path.cwd() / "here" / "config"


def platform_home(env: dict[str, str]) -> list[str]:
    code = "from bus.config import home; h = home(); print(h.config, h.state, h.runtime, h.root, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="XDG")
def test_platform_directories(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    env = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(run)}
    config, state, runtime, root, _ = platform_home(env)
    assert config == str(tmp_path / ".config/talkbus")
    assert state == str(tmp_path / ".local/state/talkbus")
    assert (runtime, root) == (str(run / "talkbus"), "None")
    assert stat.S_IMODE((run / "talkbus").stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="XDG")
def test_a_runtime_directory_that_is_no_good_falls_back_to_the_state(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    (run / "talkbus").symlink_to(tmp_path)
    env = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(run)}
    assert platform_home(env)[2] == str(tmp_path / ".local/state/talkbus/run")


def test_every_call_of_the_command_stays_light() -> None:
    code = (
        "import sys; from bus.config import home, load; load(home({'TALKBUS_HOME': 'x'}), {});"
        "print([m for m in ('platformdirs', 'psutil', 'zmq', 'tomllib', 'subprocess') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_defaults(bus: Home) -> None:
    config = load(bus, {})
    assert (config.bind, config.port, config.log_level) == ("127.0.0.1", 0, "info")
    assert (config.limits_rate, config.limits_burst, config.prune_days) == (60, 600, 30)
    assert config.delivery_native is True
    for name, setting in SETTINGS.items():
        assert (config.value(name), config.origin(name)) == (setting.default, "default")


def test_environment_before_file_before_default(bus: Home) -> None:
    write(bus, 'name = "file"\nport = 8000\nextra = 1\n[limits]\nrate = 7\n[x.y]\nz = 1\n')
    config = load(bus, {"TALKBUS_PORT": "9000", "TALKBUS_NAME": "", "TALKBUS_LOG": "debug"})
    assert (config.port, config.origin("port")) == (9000, "environment")
    assert (config.name, config.origin("name")) == ("file", "file")
    assert (config.limits_rate, config.origin("limits.rate")) == (7, "file")
    assert config.log_level == "debug"
    assert config.unknown == ("extra", "x.y.z")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n# c\nport = true\n", 3),
        ("[limits]\n\nrate = 0\n", 3),
        ('log.level = "loud"\n', 1),
        ('limits = { rate = "x" }\n', 1),
        ("[delivery]\nnative = 1\n", 2),
        ('hub = "host:1"\n', 1),
        ("name = 5\n", 1),
    ],
)
def test_a_wrong_value_is_named_with_its_line(bus: Home, text: str, line: int) -> None:
    write(bus, text)
    with pytest.raises(ConfigError, match=rf"config\.toml:{line}: .* must be .*talkbus config set"):
        load(bus, {})


def test_broken_files_are_named(bus: Home) -> None:
    write(bus, "a = 1\nb =\n")
    with pytest.raises(ConfigError, match=r"config\.toml: not TOML: .*line 2"):
        load(bus, {})
    bus.config_file.write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match=r"config\.toml:2: not UTF-8"):
        load(bus, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [("TALKBUS_PORT", "x"), ("TALKBUS_PORT", "65535"), ("TALKBUS_LOG", "loud"), ("TALKBUS_HUB", "h:1")],
)
def test_a_wrong_variable_is_named(bus: Home, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        load(bus, {name: text})


def test_hub(bus: Home) -> None:
    hub = parse_hub(f"box.lan:7717#{KEY}")
    assert (hub.endpoint, hub.key) == ("tcp://box.lan:7717", KEY)
    assert parse_hub(f"[::1]:1#{KEY}").host == "[::1]"
    for bad in (
        "",
        "box:1",
        f"box#{KEY}",
        f"box:0#{KEY}",
        f"box:x#{KEY}",
        f":1#{KEY}",
        f"box:1#{KEY}x",
        f"a b:1#{KEY}",
    ):
        with pytest.raises(ValueError):
            parse_hub(bad)
    assert load(bus, {"TALKBUS_HUB": f"box:1#{KEY}"}).hub == f"box:1#{KEY}"
    assert not is_key("é" * 40)


def test_an_unknown_name_gets_the_nearest(bus: Home) -> None:
    with pytest.raises(ConfigError, match=r"limit\.rate.*did you mean limits\.rate"):
        set_value(bus, "limit.rate", "1")
    with pytest.raises(ConfigError, match="did you mean"):
        load(bus, {}).value("prot")


def test_set_makes_a_private_file(bus: Home) -> None:
    assert set_value(bus, "port", "8000") == 8000
    assert bus.config_file.read_text() == "port = 8000\n"
    assert stat.S_IMODE(bus.config_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(bus.config.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("before", "name", "value", "after"),
    [
        ("port = 1  # mine\n", "port", "2", "port = 2  # mine\n"),
        ("port=1", "port", "2", "port=2"),
        ("'port' =  1\n", "port", "2", "'port' =  2\n"),
        ('name = "a#b" # c # d\n', "name", "x", 'name = "x" # c # d\n'),
        ('name = """a\n# b"""\nport = 1\n', "name", "x", 'name = "x"\nport = 1\n'),
        ("x = [\n 1, # port = 3\n]\nport = 1\n", "port", "2", "x = [\n 1, # port = 3\n]\nport = 2\n"),
        ('t = """\nport = 9\n"""\n', "port", "2", 't = """\nport = 9\n"""\nport = 2\n'),
        ("[limits]\nrate = 1\n\n[z]\nrate = 2\n", "limits.rate", "5", "[limits]\nrate = 5\n\n[z]\nrate = 2\n"),
        ("[limits] # l\n\n[z]\na = 2\n", "limits.rate", "5", "[limits] # l\nrate = 5\n\n[z]\na = 2\n"),
        ("limits.burst = 1\n[z]\n", "limits.rate", "5", "limits.burst = 1\nlimits.rate = 5\n[z]\n"),
        ("limits.rate = 1 # r\n", "limits.rate", "5", "limits.rate = 5 # r\n"),
        ("[z]\na = 1\n", "limits.rate", "5", "[z]\na = 1\n\n[limits]\nrate = 5\n"),
        ("[z]\na = 1", "limits.rate", "5", "[z]\na = 1\n\n[limits]\nrate = 5\n"),
        ("# top\n\n# about z\n[z]\na = 1\n", "port", "5", "# top\n\nport = 5\n\n# about z\n[z]\na = 1\n"),
        ("bind = 'h'\n[z]\nport = 1\n", "port", "5", "bind = 'h'\nport = 5\n[z]\nport = 1\n"),
        ("[[limits2]]\nrate = 1\n[[limits2]]\n", "port", "5", "port = 5\n\n[[limits2]]\nrate = 1\n[[limits2]]\n"),
        ("# only\n", "port", "5", "# only\nport = 5\n"),
        ("port = 1\r\n# c\r\n", "port", "5", "port = 5\r\n# c\r\n"),
        ("# c\r\n[z]\r\n", "limits.rate", "5", "# c\r\n[z]\r\n\r\n[limits]\r\nrate = 5\r\n"),
        ("'a=b' = 1 # port = 2\nport = 3\n", "port", "5", "'a=b' = 1 # port = 2\nport = 5\n"),
        ("", "name", 'q"\\é', 'name = "q\\"\\\\é"\n'),
        ("", "delivery.native", "FALSE", "[delivery]\nnative = false\n"),
    ],
)
def test_set_keeps_every_other_line(bus: Home, before: str, name: str, value: str, after: str) -> None:
    write(bus, before)
    set_value(bus, name, value)
    assert bus.config_file.read_bytes().decode() == after
    assert load(bus, {}).value(name) == SETTINGS[name].parse(value)
    tomllib.loads(after)


def test_an_inline_table_is_left_alone_with_the_mend(bus: Home) -> None:
    write(bus, "# c\nlimits = { rate = 1 }\n")
    with pytest.raises(ConfigError, match=r"config\.toml:2: an inline table \(write it as \[limits\]\)"):
        set_value(bus, "limits.rate", "2")
    assert load(bus, {}).limits_rate == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "x"), ("limits.rate", "0"), ("delivery.native", "maybe"), ("name", "a\nb"), ("hub", "x")],
)
def test_a_wrong_value_changes_nothing(bus: Home, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        set_value(bus, name, value)
    assert not bus.config_file.exists()


def test_a_table_where_a_value_belongs_is_refused(bus: Home) -> None:
    write(bus, "[port]\nx = 1\n")
    with pytest.raises(ConfigError):
        set_value(bus, "port", "5")
    assert bus.config_file.read_text() == "[port]\nx = 1\n"


@pytest.mark.skipif(sys.platform == "win32", reason="symlinks")
def test_a_linked_file_is_not_replaced(bus: Home, tmp_path: Path) -> None:
    bus.config.mkdir(parents=True)
    (tmp_path / "dotfiles.toml").write_text("port = 1\n")
    os.symlink(tmp_path / "dotfiles.toml", bus.config_file)
    assert load(bus, {}).port == 1
    with pytest.raises(ConfigError, match=r"edit .*dotfiles\.toml"):
        set_value(bus, "port", "5")
