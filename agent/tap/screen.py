"""A screen on a terminal: rows that somebody draws, keys, and the end in good order. The only importer of textual.

Items come from a thread of their own, which may wait and fail; what it raises is raised by `show`, once the terminal
is as it was. It must not know what is drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from rich.segment import Segment as RichSegment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.events import Resize
from textual.strip import Strip
from textual.widget import Widget

from agent.tap.cells import Segment
from agent.tap.items import Item
from bus.errors import LocalError

FRAMES_PER_S = 12
AHEAD = (
    20_000  # items that wait to be drawn; beyond it the bus's queue is used, and then some are missed, which is said
)
AT_ONCE = 2000  # items between two frames
INTERRUPTED = 130
ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_NAMES = ("#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d19a66", "#7aa2f7")
STYLES = {
    "title": Style(bold=True),
    "frame": Style(color="#5c6370"),
    "dim": Style(color="#8a919e"),
    "bubble": Style(color="#ffffff", italic=True),
    "body": Style(),
    "unread": Style(color="#e5c07b", bold=True),
    "alarm": Style(color="#e06c75", bold=True),
    "head": Style(bold=True, reverse=True),
    "bar": Style(color="#61afef"),
    "mood.idle": Style(color="#8a919e"),
    "mood.talking": Style(color="#98c379", bold=True),
    "mood.listening": Style(color="#61afef", bold=True),
    "mood.connecting": Style(color="#e5c07b"),
    "mood.offline": Style(color="#5c6370"),
    "mood.refused": Style(color="#e06c75", bold=True),
    **{f"name.{number}": Style(color=colour, bold=True) for number, colour in enumerate(_NAMES)},
}


class Picture(Protocol):
    """What is on the screen."""

    def take(self, item: Item) -> None:
        """Something happened."""

    def over(self, remark: str) -> None:
        """Nothing more will."""

    def key(self, key: str) -> None:
        """A key was pressed that means nothing to the screen itself."""

    def moving(self) -> bool:
        """Whether it looks different by time alone."""

    def draw(self, wide: int, high: int) -> list[list[Segment]]:
        """Rows of segments for a screen of that size."""


class Source:
    """The thread that takes items from where they come. `open_` is called in it and gets a function that sleeps."""

    def __init__(self, open_: Callable[[Callable[[float], bool]], Iterator[Item | None]]) -> None:
        self.items: queue.Queue[Item | BaseException | None] = queue.Queue(AHEAD)
        self._open = open_
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; it has a moment to close what it holds."""
        self._stop.set()
        with contextlib.suppress(RuntimeError):
            self._thread.join(3)

    def _run(self) -> None:
        try:
            for item in self._open(self._stop.wait):
                if item is not None:
                    self._put(item)
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:  # it is raised again where somebody can be told
            self._put(error)

    def _put(self, item: Item | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self.items.put(item, timeout=0.1)
                return


class Terminal(App[int]):
    """Draws a picture until somebody wants it to end."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Rows { width: 100%; height: 100%; }"
    BINDINGS: ClassVar = [
        Binding("q", "leave(0)", "quit", show=False),
        Binding("escape", "leave(0)", "quit", show=False),
        Binding("ctrl+c", f"leave({INTERRUPTED})", "quit", show=False, priority=True),
        Binding("ctrl+q", "leave(0)", "quit", show=False, priority=True),
    ]

    def __init__(self, picture: Picture, source: Source, over: str = "") -> None:
        """`over` is told when there are no more items; without it the screen ends then."""
        super().__init__()
        self.failure: BaseException | None = None
        self._picture, self._source, self._over = picture, source, over
        self._rows = Rows(picture)

    def compose(self) -> ComposeResult:
        yield self._rows

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in ENDINGS:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, self.exit, 128 + number)
        self._source.start()
        self.set_interval(1 / FRAMES_PER_S, self._tick)

    def action_leave(self, code: int) -> None:
        self.exit(code)

    def on_key(self, event: Any) -> None:
        self._picture.key(str(event.key))
        self._rows.redraw()

    def _tick(self) -> None:
        """What came since the last frame, then the next frame."""
        changed = self._picture.moving()
        for _ in range(AT_ONCE):
            try:
                item = self._source.items.get_nowait()
            except queue.Empty:
                break
            changed = True
            if isinstance(item, BaseException):
                self._fail(item)
                return
            if item is not None:
                self._picture.take(item)
            elif self._over:
                self._picture.over(self._over)
            else:
                self.exit(0)
                return
        if changed:
            self._rows.redraw()

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.exit(1)

    def _handle_exception(self, error: Exception) -> None:
        """Textual's own would print a traceback; ours is told when the terminal is as it was."""
        self._fail(error)


class Rows(Widget):
    """The rows of the picture; what they show was drawn before, so that painting cannot fail."""

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self._picture = picture
        self._strips: list[Strip] = []

    def redraw(self) -> None:
        """Draw the picture anew."""
        wide, high = self.size
        if wide and high:
            self._strips = [strip(row) for row in self._picture.draw(wide, high)]
            self.refresh()

    def on_resize(self, _event: Resize) -> None:
        self.redraw()

    def render_line(self, y: int) -> Strip:
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)


def strip(row: Sequence[Segment]) -> Strip:
    """A row as textual wants it."""
    return Strip([RichSegment(text, STYLES.get(style)) for style, text in row])


def show(picture: Picture, source: Source, over: str = "") -> int:
    """Run it; the exit code. What ended it, if it was a fault, is raised when the terminal is as it was."""
    screen = Terminal(picture, source, over)
    try:
        code = screen.run(mouse=False)  # so that text can be selected
    finally:
        source.stop()
    failure = screen.failure
    if failure is None:
        return code if code is not None else screen.return_code or 0
    if isinstance(failure, Exception) and not _ours(failure):
        raise LocalError(f"the screen has failed: {type(failure).__name__}: {failure} (zmq-tap without it goes on)")
    raise failure


def _ours(error: BaseException) -> bool:
    from bus.errors import BusError

    return isinstance(error, BusError | OSError)
