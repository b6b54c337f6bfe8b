"""Directories 0700 and files 0600, made so from the first byte, and the check that they still are.

Refused rather than mended: symlinks, foreign owners, and a directory above in which somebody may swap ours.
On Windows the profile's own access lists do this work, so there only existence is checked.

Knows what makes a path private and nothing of what is kept there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from bus.errors import ConfigError, StoreError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def private_dir(path: Path) -> Path:
    """Make `path` (and missing parents) as 0700, or check the one that is there; returns `path`.

    A wrong mode on a directory of our own is mended. ConfigError, with the mend, for a symlink, something
    that is no directory, a foreign owner, a directory above that anybody may write to or a stranger owns, or a
    place that cannot be written.
    """
    for missing in reversed(_missing(path)):
        # Another process may be first, which is as good: what counts is checked below.
        try:
            missing.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot("make the directory", missing, error) from error
    if sys.platform == "win32":
        if not path.is_dir():
            raise ConfigError(f"{path} is not a directory (move it away)")
        return path
    found = _owned(path)
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is not a directory (move it away)")
    _check_above(path)
    if stat.S_IMODE(found.st_mode) != 0o700:
        _mend_dir(path)
    return path


def write_private(path: Path, data: bytes, *, exclusive: bool = False) -> bool:
    """Replace `path` by `data` as a file 0600, whole or not at all, and on the disk when this returns.

    With `exclusive` a file already there stays and False is returned, so of several writers one wins.
    StoreError(full) when the disk is full, ConfigError when the directory is missing or not writable.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        _write_new(temp, data)
        try:
            won = _place(temp, path, exclusive)
        finally:
            temp.unlink(missing_ok=True)
        _sync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise StoreError(f"no room to write {path} (free some disk space)", full=True) from error
        raise _cannot("write", path, error) from error
    return won


def private_file(path: Path) -> bool:
    """Check a file of ours that is there, and close it to others: 0600. True when it had stood open.

    For what the process itself must go on with, as a database. ConfigError, with the mend, for a symlink, something
    that is no file, or a foreign owner. On Windows nothing is done.
    """
    if sys.platform == "win32":
        return False
    found = _owned(path)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is no file (move it away)")
    if not stat.S_IMODE(found.st_mode) & 0o077:
        return False
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(handle, 0o600)
    finally:
        os.close(handle)
    return True


def check_private(path: Path) -> None:
    """ConfigError, with the mend, unless `path` is there, ours, no symlink, and closed to everybody else.

    Nothing is mended: a key that stood open may have been read, and only a person can judge that.
    """
    if sys.platform == "win32":
        if not path.exists():
            raise ConfigError(f"{path} does not exist")
        return
    mode = stat.S_IMODE(_owned(path).st_mode)
    if mode & 0o077:
        wanted = "700" if path.is_dir() else "600"
        raise ConfigError(f"{path} is open to others, mode {mode:04o} (chmod {wanted} '{path}')")


def _missing(path: Path) -> list[Path]:
    """`path` and its parents that do not exist, the deepest first."""
    missing: list[Path] = []
    for part in (path, *path.parents):
        if os.path.lexists(part):
            break
        missing.append(part)
    return missing


def _cannot(verb: str, path: Path, error: OSError) -> ConfigError:
    reason = error.strerror or type(error).__name__
    return ConfigError(f"cannot {verb} {path}: {reason} (make '{path.parent}' writable, or set TALKBUS_HOME)")


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _place(temp: Path, path: Path, exclusive: bool) -> bool:
    if not exclusive:
        os.replace(temp, path)
        return True
    try:
        if sys.platform == "win32":
            os.rename(temp, path)  # refuses an existing target there
        else:
            os.link(temp, path)
    except FileExistsError:
        return False
    except OSError as error:
        # File systems without hard links: two first writers in the same instant could then differ.
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK} or path.exists():
            raise
        os.replace(temp, path)
    return True


if sys.platform == "win32":

    def _sync_dir(path: Path) -> None:
        """Windows cannot open a directory to flush it; the rename is journalled."""

else:

    def _sync_dir(path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot; the rename still happened
                raise
        finally:
            os.close(handle)

    def _owned(path: Path) -> os.stat_result:
        """The lstat of `path` when it is ours and no symlink."""
        try:
            found = os.lstat(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror} (does it exist?)") from error
        if stat.S_ISLNK(found.st_mode):
            raise ConfigError(f"{path} is a symlink (put the real thing there, or set TALKBUS_HOME)")
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"{path} belongs to user {found.st_uid}, not to you, {os.geteuid()} "
                f"(chown it, move it away, or set TALKBUS_HOME)"
            )
        return found

    def _check_above(path: Path) -> None:
        """Who may write to a directory above may put another one in our place; in a sticky one only owners may."""
        parent = Path(os.path.realpath(path.parent))
        for above in (parent, *parent.parents):
            found = os.stat(above)
            if found.st_mode & stat.S_ISVTX:
                continue
            if found.st_mode & stat.S_IWOTH:
                raise ConfigError(
                    f"{above} may be written by anybody, who could swap what is below it (chmod o-w '{above}')"
                )
            # 65534 is how root looks from inside a container that does not map it.
            if above == parent and found.st_uid not in (0, os.geteuid(), 65534):
                raise ConfigError(
                    f"{above} belongs to user {found.st_uid}, who could swap {path.name} "
                    "(chown it, or set TALKBUS_HOME to a place of your own)"
                )

    def _mend_dir(path: Path) -> None:
        # Through a handle: between a check of the name and a chmod of the name, the name could change hands.
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except PermissionError:
            os.chmod(path, 0o700, follow_symlinks=os.chmod not in os.supports_follow_symlinks)
            return
        try:
            os.fchmod(handle, 0o700)
        finally:
            os.close(handle)
