"""The built wheel in an environment of its own, called from a project that has packages named like ours."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAP = "raise SystemExit('the package of the user\\'s project was imported')\n"


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, text=True, capture_output=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that has the wheel and nothing of the checkout."""
    where = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", where, ROOT, cwd=where)
    assert built.returncode == 0, built.stderr
    venv.create(where / "env", with_pip=True)
    python = where / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    (wheel,) = where.glob("talkbus-*.whl")
    got = run(python, "-m", "pip", "install", "--quiet", wheel, cwd=where)
    assert got.returncode == 0, got.stderr
    return python.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with packages named bus, agent and hooks that must not be imported."""
    folder = tmp_path / "project"
    for name in ("bus", "agent", "hooks"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(TRAP)
    return folder


@pytest.mark.timeout(600)
def test_ours_are_used_in_a_project_that_has_packages_of_the_same_names(installed: Path, project: Path) -> None:
    home = project.parent / "home"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TALKBUS_", "CLAUDE", "PYTHON"))}
    env |= {"PYTHONPATH": str(project), "TALKBUS_HOME": str(home), "TALKBUS_NAME": "wheel"}
    talkbus = installed / "talkbus"
    try:
        version = run(talkbus, "version", cwd=project, env=env)
        assert version.returncode == 0, version.stderr
        sent = run(talkbus, "send", "wheel", "to myself", cwd=project, env=env)
        assert sent.returncode == 0, sent.stderr
        inbox = run(talkbus, "inbox", "--json", cwd=project, env=env)
        assert "to myself" in inbox.stdout, inbox.stderr
        module = run(installed / "python", "-m", "talkbus", "status", cwd=project, env=env)
        assert module.returncode == 0, module.stderr
    finally:
        down = run(talkbus, "down", cwd=project, env=env)
    assert down.returncode == 0, down.stderr
    tap = run(installed / "zmq-tap", "--help", cwd=project, env=env)
    assert tap.returncode == 0, tap.stderr
