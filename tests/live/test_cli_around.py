"""The command in foreign surroundings: a project with packages of our names; what must be quick stays so."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.live.test_cli import DONE, ROOT, Bus, bus

__all__ = ["bus"]  # a fixture
pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(sys.platform == "win32", reason="POSIX")]

resource = pytest.importorskip("resource")


# -- surroundings ----------------------------------------------------------------------------------------------------


def test_a_project_with_packages_of_our_names(bus: Bus, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("bus", "agent", "hooks"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("raise SystemExit('the package of the project was imported')\n")
    runner = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; sys.argv = ['talkbus'] + sys.argv[1:]; "
    runner += "runpy.run_module('talkbus', run_name='__main__', alter_sys=True)"
    for args in (("whoami", "--as", "a"), ("send", "--as", "a", "a", "hi"), ("inbox", "--as", "a"), ("down",)):
        done = subprocess.run(
            [sys.executable, "-c", runner, *args],
            cwd=project,
            env=bus.env(PYTHONPATH=str(project)),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == DONE, (args, done.stderr)


@pytest.mark.parametrize("args", [("version",), ("--help",)])
def test_what_needs_nothing_is_quick(bus: Bus, args: tuple[str, ...]) -> None:
    bus.run(*args)
    used = [0.0]
    for _ in range(5):
        bus.ok(*args)
        took = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(took.ru_utime + took.ru_stime)
    # 0.07 s of work; what the clock says depends on who else uses the machine.
    assert min(b - a for a, b in pairwise(used[1:])) < 0.2


def test_only_mcp_imports_the_sdk_and_help_imports_nothing_heavy(bus: Bus) -> None:
    code = (
        "import sys, talkbus; sys.argv = ['talkbus', *sys.argv[1:]]\n"
        "try: talkbus.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('mcp', 'zmq', 'sqlite3', 'asyncio', 'msgpack') if m in sys.modules], file=sys.stderr)"
    )
    for args, heavy in ((("--help",), ""), (("send", "--help"), ""), (("mcp", "--help"), "")):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], cwd=bus.cwd, env=bus.env(), capture_output=True, text=True
        )
        assert done.stderr.strip() == f"[{heavy}]", (args, done.stderr)
