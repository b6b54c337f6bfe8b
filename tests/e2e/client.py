"""The pinned real client: where it is, how it is installed, and a skip where it is not.

`python -m tests.e2e.client` installs it (CI does so once, and caches the folder). It must not know
how the client is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = "@anthropic-ai/claude-code"
VERSION = "2.1.329"
INSTALL_LIMIT = 300.0  # seconds; about 10 are usual for 380 MB
STUB_SIZE = 1_000_000  # bytes; where npm did not run the install script, a small stub lies there that complains
CACHE_VARIABLE = "TALKBUS_E2E_CACHE"


class NotInstalled(Exception):
    """npm could not install the client, or what it installed is not the pinned version."""


def cache_folder() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "talkbus-e2e"


def claude_binary() -> Path | None:
    """The installed client, or None. Looks only: nothing is started and nothing is fetched."""
    package = cache_folder() / "node_modules" / PACKAGE
    manifest = package / "package.json"
    binary = package / "bin" / "claude.exe"  # the name on every system: npm's link `claude` points here
    if not manifest.is_file() or f'"version": "{VERSION}"' not in manifest.read_text():
        return None
    real = os.access(binary, os.X_OK) and binary.stat().st_size > STUB_SIZE
    return binary if real else None


def install_client() -> Path:
    """Install the pinned version into the cache folder, unless it is there, and prove that it starts."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if claude_binary() is None:
        command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", f"{PACKAGE}@{VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotInstalled(f"npm did not run: {error}") from error
        if done.returncode:
            raise NotInstalled(f"npm failed:\n{done.stderr[-2000:]}")
    binary = claude_binary()
    if binary is None:
        raise NotInstalled(f"npm left no executable client of version {VERSION} in {folder}")
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=60)
    if VERSION not in said.stdout:
        raise NotInstalled(f"{binary} --version said {(said.stdout + said.stderr)[:500]!r}")
    return binary


def need_client() -> Path:
    """For tests: the client, or a skip that says how to get it."""
    import pytest

    binary = claude_binary()
    if binary is None:
        where = f"{PACKAGE} {VERSION} is not in {cache_folder()}"
        pytest.skip(f"{where}: run `python -m tests.e2e.client` (or set {CACHE_VARIABLE})")
    return binary


if __name__ == "__main__":
    try:
        print(install_client())
    except NotInstalled as error:
        sys.exit(f"not installed: {error}")
