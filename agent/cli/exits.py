"""How a command ends: exit codes, and every failure as one line on stderr instead of a traceback.

Knows click and the errors; nothing of what the commands do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import click

from bus.errors import BusError, Unreachable

DONE = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
TIMED_OUT = 4
INTERRUPTED = 130
SIGNALLED = 128  # and the number of the signal

_NO_ARGS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # click 8.2 and later


class TimedOut(BusError):
    """What was waited for did not come in time."""


class Asked(NamedTuple):
    """A request that may be on the disk: its id, and what is known of it, in words that name the id."""

    id: str
    text: str


class OneLine(click.Command):
    """A command that ends as the contract says: `error: what (what to do)`, exit 0 to 4."""

    ends = False  # whether `main` turns failures into exit codes

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, but what click would end by itself, or write to a terminal that is gone, comes to `ended`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if not self.ends:
                raise
            raise _Unread from error
        except KeyboardInterrupt as error:
            if not self.ends or _interrupted(error) == INTERRUPTED:
                raise
            raise click.Abort from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but failures end as one line; with `standalone_mode` off they come as they are."""

        def command() -> Any:
            return super(OneLine, self).main(args, prog_name, complete_var, False, **extra)

        if not standalone_mode:
            try:
                return command()
            finally:
                _deaf()
        self.ends = True
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character gets its number, and no traceback.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        sys.exit(ended(command, getattr(extra.get("obj"), "requests", list)))


class _Unread(Exception):
    """A BrokenPipeError; click would end the process at one."""


class Signalled(KeyboardInterrupt):
    """A signal that asks this process to end; it is as good as Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@dataclass(slots=True)
class _Hearing:
    """What stood before `hear_signals`: the handlers of the signals that are heard, the hook, that of the timer."""

    heard: dict[int, Any] = field(default_factory=dict)
    hook: Callable[[sys.UnraisableHookArgs], Any] | None = None
    alarm: Any = None


_hearing = _Hearing()
_AGAIN_S = 0.01


def hear_signals() -> None:
    """Let what asks this process to end (SIGINT, SIGTERM, SIGHUP, SIGQUIT, where the system has them) come as
    Signalled, until `ended` has told how the command ended. What is ignored, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread() or _hearing.hook is not None:
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            _hearing.heard[number] = signal.signal(number, _end)
    _hearing.hook, sys.unraisablehook = sys.unraisablehook, _unraisable


def _end(number: int, _frame: object) -> None:
    # People press Ctrl-C twice and a terminal that closes says so more than once, but what is begun has to be told.
    # SIGQUIT always ends.
    for each in _hearing.heard:
        signal.signal(each, signal.SIG_DFL if each == getattr(signal, "SIGQUIT", 0) else signal.SIG_IGN)
    raise Signalled(number)


def _unraisable(what: sys.UnraisableHookArgs, /) -> None:
    """Python ran a callback in the moment of a signal, as it does when a module is imported, and drops what that
    raises: it is raised again, in a moment. Windows has no timer for that: there it is dropped, and Python says so.
    """
    error = what.exc_value
    if not isinstance(error, KeyboardInterrupt) or not hasattr(signal, "setitimer"):
        (_hearing.hook or sys.__unraisablehook__)(what)
        return

    def again(_number: int, _frame: object) -> None:
        raise error

    former = signal.signal(signal.SIGALRM, again)
    _hearing.alarm = _hearing.alarm or former
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)


def _deaf() -> None:
    """As before `hear_signals`."""
    for number, former in _hearing.heard.items():
        signal.signal(number, former)
    _hearing.heard = {}
    if _hearing.alarm is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, _hearing.alarm)
        _hearing.alarm = None
    if _hearing.hook is not None:
        sys.unraisablehook, _hearing.hook = _hearing.hook, None


def ended(command: Callable[[], Any], requests: Callable[[], list[Asked]] = list) -> int:
    """Run it; its exit code. What it raises on purpose is told on stderr.

    `requests` tells what may have gone out by then: it is named when its result cannot be printed.
    """
    code = INTERRUPTED
    try:
        code = _code(command, requests)
        return code
    finally:
        _deaf()
        if code >= SIGNALLED:
            _quiet_stdout()  # nobody may read it, and then the rest of it would keep this process
        _flush()


def _code(command: Callable[[], Any], requests: Callable[[], list[Asked]]) -> int:
    try:
        code = command()
    except click.UsageError as error:
        if isinstance(error, _NO_ARGS):
            error.show()
            return USAGE
        text = _text(error)
        told(text if text.endswith(")") else f"{text} ({_see(error)})")
        return USAGE
    except click.ClickException as error:
        told(_text(error))
        return REFUSED
    except Unreachable as error:
        told(str(error))
        return UNREACHABLE
    except (TimedOut, TimeoutError) as error:
        told(str(error) or "it took too long (try again)")
        return TIMED_OUT
    except BusError as error:
        told(str(error))
        return REFUSED
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes its own of a KeyboardInterrupt; the text, if there is one, names what was begun.
        text = str(error) or str(error.__cause__ or "")
        more = [asked for asked in requests() if asked.id not in text]
        if text:
            told("; ".join([text, *(asked.text for asked in more)]))
        else:
            _unprinted(more, "interrupted")
        return _interrupted(error)
    except (_Unread, BrokenPipeError):
        _unprinted(requests())
        return REFUSED
    except OSError as error:
        if requests():
            _unprinted(requests(), error.strerror or str(error))
            return REFUSED
        if isinstance(error, FileNotFoundError) and nowhere():
            told("the current folder was removed (cd to one that is there)")
        else:
            told(f"{error.strerror or error} (check the disk and the terminal)")
        return REFUSED
    return code if isinstance(code, int) and not isinstance(code, bool) else DONE


def _unprinted(requests: Sequence[Asked], why: str = "nobody reads the output") -> None:
    """Name what went out before its result could be printed."""
    if requests:
        told(f"{why}, but {'; '.join(asked.text for asked in requests)}")


def _interrupted(error: BaseException | None) -> int:
    """The exit code for what ended by Ctrl-C or a signal."""
    while error is not None:
        if isinstance(error, Signalled):
            return SIGNALLED + error.number
        error = error.__cause__ or error.__context__
    return INTERRUPTED


def nowhere() -> bool:
    """Whether the current folder was removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def told(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    line = " ".join(part for part in text.splitlines() if part.strip())
    line = "".join(c if c.isprintable() else "?" for c in line)
    with suppress(OSError):  # nobody reads it, and the exit code still tells
        click.echo(f"error: {line}", err=True)


def _flush() -> None:
    """What nobody takes any more goes nowhere, or Python complains about it at the end, with a code of its own."""
    if sys.stdout is None:
        return
    with suppress(ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            _quiet_stdout()


def _quiet_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return  # there is none, or a stand-in of a test
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _text(error: click.ClickException) -> str:
    text = error.format_message().rstrip(".")
    return text[:1].lower() + text[1:] if not text[:2].isupper() else text


def _see(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "talkbus"
    return f"see '{path} --help'"
