"""A user's settings files on the disk: read, backed up, replaced whole, and given back as they were.

A file is changed only while it still is what was read, under the lock the client itself takes for it. What we left
behind is recorded by its digest in `<state>/install.json`: a file that still is exactly that gets its backup back, to
the byte. Must not know what the settings say.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bus.config import Home
from bus.errors import ConfigError
from bus.private import private_dir, write_private

_RECORD = "install.json"
_LOCK_S = 3.0  # the client holds it for milliseconds
_STALE_S = 10.0  # a lock of the client's that is older was left by one that died


@dataclass(slots=True)
class Kept:
    """What is remembered of one file: the digests before us ("" for no file) and after us, and what we put in."""

    before: str
    after: str
    backup: str = ""
    made: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    line: str = ""
    folder: bool = False  # the folder it is in was made for it


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was read. `path` is its name for the user, `real` where that leads; `data` None: not there."""

    path: Path
    real: Path
    data: bytes | None
    mode: int

    @property
    def text(self) -> str:
        """What it says, without a byte order mark; ConfigError where it is not UTF-8."""
        data = (self.data or b"").removeprefix(codecs.BOM_UTF8)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{self.path}:{line}: not UTF-8 (save it as UTF-8)") from error

    def encoded(self, text: str) -> bytes:
        """A new text as it is to be written, with the byte order mark if there was one."""
        mark = codecs.BOM_UTF8 if (self.data or b"").startswith(codecs.BOM_UTF8) else b""
        return mark + text.encode("utf-8")


@dataclass(frozen=True, slots=True)
class Change:
    """A file and what is to become of it: `data` None removes it."""

    file: File
    data: bytes | None

    @property
    def real(self) -> bool:
        """Whether anything changes at all."""
        return self.file.data != self.data

    def diff(self) -> str:
        """Unified, for a person."""
        old, new = (
            (d or b"").decode("utf-8", "replace").splitlines(keepends=True) for d in (self.file.data, self.data)
        )
        name = str(self.file.path)
        sides = (name if self.file.data is not None else os.devnull, name if self.data is not None else os.devnull)
        lines = difflib.unified_diff(old, new, *sides)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def read(path: Path, *, shared: bool = False, writable: bool = True) -> File:
    """What is there now. ConfigError for what is no file, and with `writable` for what we must not or cannot change.

    A file that is to be made will be for its owner alone, one of a project (`shared`) as the umask says.
    """
    try:
        real = Path(os.path.realpath(path, strict=path.exists()))
        found = os.stat(real)
    except FileNotFoundError:
        if path.is_symlink() and not Path(os.path.realpath(path)).parent.is_dir():
            raise ConfigError(f"{path} leads to a folder that does not exist (mend the link)") from None
        return File(path, Path(os.path.realpath(path)), None, 0o666 & ~_umask() if shared else 0o600)
    except OSError as error:
        raise _cannot("read", path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is not a file (move it away)")
    if writable and found.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to user {found.st_uid}, not to you (have it chowned to you)")
    if writable and (found.st_mode & 0o200 == 0 or not os.access(real, os.W_OK)):
        raise ConfigError(f"{path} cannot be written (chmod u+w '{real}')")
    try:
        return File(path, real, real.read_bytes(), stat.S_IMODE(found.st_mode))
    except OSError as error:
        raise _cannot("read", path, error) from error


def apply(changes: Sequence[Change], *, backups: bool) -> list[Path | None]:
    """Write all of them or none; the backups made, in their order (None where there was no file).

    ConfigError when one cannot be written, or is not any more what was read; those before it are put back.
    """
    done: list[tuple[Change, Path | None]] = []
    try:
        for change in changes:
            with _locked(change.file):
                _unchanged(change.file)
                copy = _back_up(change.file) if backups and change.file.data is not None else None
                done.append((change, copy))
                _place(change.file, change.data)
    except ConfigError:
        for change, copy in reversed(done):
            with contextlib.suppress(OSError):
                if _now(change.file.real) == change.data:
                    _place(change.file, change.file.data)
                if copy is not None:
                    copy.unlink()
        raise
    return [copy for _, copy in done]


def digest(data: bytes | None) -> str:
    """Of a file's content; "" where there is none."""
    return "" if data is None else hashlib.sha256(data).hexdigest()


def original(file: File, kept: Kept | None) -> Change | None:
    """The way back to exactly what was there before us; None when the file, or its backup, has changed since."""
    if kept is None or digest(file.data) != kept.after or file.data is None:
        return None
    if not kept.before:
        return Change(file, None)
    data = _now(Path(kept.backup)) if kept.backup else None
    return Change(file, data) if data is not None and digest(data) == kept.before else None


def load(home: Home) -> dict[str, Kept]:
    """The record, by the files' real paths; what is not as we write it counts as absent."""
    try:
        told = json.loads((home.state / _RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    wanted = {f.name: {"made": list, "added": list, "folder": bool}.get(f.name, str) for f in fields(Kept)}
    found = {}
    for path, kept in (told.get("files") or {}).items() if isinstance(told, dict) else ():
        if isinstance(kept, dict) and all(type(kept.get(name)) is kind for name, kind in wanted.items()):
            found[path] = Kept(**{name: kept[name] for name in wanted})
    return found


def save(home: Home, record: dict[str, Kept]) -> None:
    """Write the record; without anything to remember there is no file."""
    path = home.state / _RECORD
    if record or path.exists():
        private_dir(home.state)
    if not record:
        path.unlink(missing_ok=True)
        return
    told: dict[str, Any] = {"version": 1, "files": {name: asdict(kept) for name, kept in record.items()}}
    write_private(path, json.dumps(told, indent=1).encode() + b"\n")


def _unchanged(file: File) -> None:
    if _now(file.real) != file.data:
        raise ConfigError(f"{file.path} was changed by somebody else just now (try again)")


def _now(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _cannot("read", path, error) from error


def _back_up(file: File) -> Path:
    """A copy beside the file, for its owner alone."""
    assert file.data is not None
    when = time.strftime("%Y%m%dT%H%M%S")
    for number in range(1000):
        copy = file.real.with_name(f"{file.real.name}.talkbus-backup-{when}{f'-{number}' if number else ''}")
        try:
            handle = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot("back up", file.path, error) from error
        _fill(handle, copy, file.data, None)
        return copy
    raise ConfigError(f"{file.path} has a thousand backups of this second (try again)")


def _place(file: File, data: bytes | None) -> None:
    """Put `data` in the place of the file, whole, with the mode it had; links to it go on leading to it."""
    try:
        if data is None:
            file.real.unlink(missing_ok=True)
            return
        file.real.parent.mkdir(mode=0o700 if file.mode & 0o077 == 0 else 0o777, parents=True, exist_ok=True)
        fresh = file.real.with_name(f".{file.real.name}.{os.getpid()}.{os.urandom(4).hex()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        _fill(handle, fresh, data, file.mode)
        try:
            os.replace(fresh, file.real)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot("write", file.path, error) from error


def _fill(handle: int, path: Path, data: bytes, mode: int | None) -> None:
    try:
        with open(handle, "wb") as target:
            target.write(data)
            target.flush()
            if mode is not None:
                os.fchmod(handle, mode)
            os.fsync(handle)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise _cannot("write", path, error) from error


@contextlib.contextmanager
def _locked(file: File) -> Iterator[None]:
    """The client's own lock on a file of its state: a folder `<file>.lock`, stale when it is not touched any more."""
    if not file.path.parent.is_dir() or file.path.name == "settings.json":
        yield  # the client takes none for its settings
        return
    lock = file.path.with_name(file.path.name + ".lock")
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            os.mkdir(lock)
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.stat(lock).st_mtime > _STALE_S:
                    with contextlib.suppress(OSError):
                        os.rmdir(lock)
                    continue
            if time.monotonic() >= end:
                raise ConfigError(f"{file.path} is in use by the client, {lock} is there (try again)") from None
            time.sleep(0.02)
        except OSError as error:
            raise _cannot("lock", file.path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(lock)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cannot(verb: str, path: Path, error: OSError) -> ConfigError:
    mend = "free some disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"make '{path.parent}' writable"
    return ConfigError(f"cannot {verb} {path}: {error.strerror or type(error).__name__} ({mend})")
