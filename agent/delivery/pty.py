"""A program in a pseudo-terminal of ours, into which a waiting message is typed when nobody else types.

Bytes go through untouched both ways, window size and signals are handed on, and the program's end is ours. What is
to be typed comes from the box of the agent that serves the session, in the folder of terminal.py. How it is typed:

    a client that says what it is doing      the message, as a paste and Enter, while it is idle
    a program that reads lines (canonical    one line of ours that says where to read the message: there every line
    mode, with echo)                         of a message would be a command of its own
    any other program                        nothing, unless the person said that it takes pastes (`--paste`): Enter
                                             may confirm a dialog there, which no message may

Typed text is not read for that, and an empty input queue is not a proof either: a program can throw it away unread.
Where no transcript decides, a text counts as taken when the program has itself written the reference in it.

`Typist` decides, and is pure: `now` is ms of a steady clock. Must not know messages nor the bus; `Host` is whoever
serves the session where the program has no agent of its own.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.delivery import clientfile, native
from agent.delivery.maildir import Box, body
from agent.delivery.terminal import NOTICE, TERMINAL, WAITS, Terminal, above
from bus import processes
from bus.errors import ConfigError

STILL_MS = 500  # the keyboard, before anything is typed
QUIET_MS = 1000  # the output of a program that does not say whether it is idle
SILENT_MS = 3000  # one that has written nothing yet may still be starting
SETTLE_MS = 2000  # after something was typed: the status needs a moment to say busy
LOOK_MS = 200
WAY_MS = 5000
LEAVE_S = 2.0  # for our own agent to say goodbye
HOST_AFTER_MS = 4000  # an agent that the client starts itself needs less than half of this
REMEDY = "run the program itself: messages then come by the other paths"

_MODE = re.compile(rb"\x1b\[\?([0-9;]{1,40})([hl])")
_TAIL = 48  # octets of output kept, for a sequence that comes in two pieces
_MOVES = re.compile(rb"\x1b(?:\[[0-9;]*|O)[A-DFH~]")  # the cursor, in the line or to an earlier one
_KEYS = re.compile(
    rb"\x1b\[200~.*?(?:\x1b\[201~|$)"  # a paste
    rb"|\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|\x1b[\]P_^X].*?(?:\x07|\x1b\\|$)|\x1b.|\x1b",
    re.DOTALL,
)
# What is typed into a client: a paste, what the terminal answers by itself (also where a mouse or the focus is), keys
# in the encodings that name them by number, any other sequence, and single characters.
_INPUT = re.compile(
    rb"(?P<paste>\x1b\[200~.*?(?:\x1b\[201~|$))"
    rb"|(?P<answer>\x1b\[(?:[?>=<][0-?]*[ -/]*[@-~]|[IO]|[0-9;]*[Rt]|M...)|\x1b[\]P_^X].*?(?:\x07|\x1b\\|$))"
    rb"|\x1b\[(?P<code>[0-9]+)(?::[0-9:]*)?(?:;(?P<mods>[0-9]*)(?::(?P<event>[0-9]))?[0-9:;]*)?u"
    rb"|\x1b\[27;(?P<mods2>[0-9]+);(?P<code2>[0-9]+)~"
    rb"|(?P<key>\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|\x1b.|\x1b)"
    rb"|(?P<one>[\x00-\x1f\x7f]|[\x20-\x7e\x80-\xff][\x80-\xbf]*)",
    re.DOTALL,
)
_HALF = re.compile(rb"\x1b\[[0-?]*[ -/]*\Z")  # a sequence whose end comes with the next read
_SPECIAL = b"@/#!?\\"  # in a client's line these open lists, change its mode or continue the line
_TAKEN_MS = 5000  # a turn that begins later than that after Enter was begun by something else
_SEQUENCE = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\x00-\x1a\x1c-\x20]"
)
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_^X][^\x07\x1b]*\x1b?|[ -/]*)\Z")
_UNFINISHED_MAX = 4096  # bytes of a sequence that has not ended yet


class Host(Protocol):
    """Serves the session itself, where the program has no agent of its own."""

    def begin(self, client: int) -> None:
        """Start to serve the session of this client; returns at once."""

    def end(self, over: bool) -> None:
        """Begin to let go: another agent serves from now on, or the program is `over`. Returns at once."""

    def ended(self) -> bool:
        """Whether nothing is held any more, also when nothing ever was."""

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` s for that."""

    @property
    def name(self) -> str:
        """What the session is called on the bus, "" before it is known."""


@dataclass(slots=True)
class Typist:
    """When to type. Tell it what happens; ask `may`."""

    reads_status: bool = False  # the program says whether it is idle
    key_at: int = -(10**9)
    output_at: int = -(10**9)
    typed_at: int = -(10**9)
    started_at: int = -(10**9)
    wrote: bool = False  # the program has written something
    draft: int = 0  # characters that seem to stand in the input line, unsent
    ours: bool = False  # what stands there is what we typed, and nobody has touched a key since
    entered_again: bool = False  # Enter was pressed a second time for it
    moved: bool = False  # the cursor is somewhere in the draft, so a backspace may remove nothing
    status: str = ""
    modes: set[int] = field(default_factory=set)  # private modes of the terminal that are on
    pasted: bool = False  # it has asked for pastes once
    plain: bool = True  # the line was empty once, and since then only text was typed and taken back
    stashed: bool = False  # a draft was put aside, and comes back into the line after the next prompt
    _searching: bool = False  # an earlier line is looked for: Ctrl-C ends that
    _entered: bool = False  # the last key was Enter
    _session: str = ""
    _half: bytes = b""
    _handed: int = 0  # characters of the draft that the program has been given, so that no key takes them back
    _quoted: bool = False  # the next character stands for itself in the line
    _said: str = ""  # the last status that could be read
    _status_at: int = 0
    _rest: bytes = b""

    def keys(self, now: int, data: bytes, erase: bytes = b"") -> None:
        """The person typed. What the terminal answers by itself comes here too, and only counts as a key.

        `erase` is the terminal's erase character while the program reads lines (canonical mode), else empty.
        """
        self.key_at = now
        if self.reads_status:
            self._client(data)
            return
        self.ours = False
        if erase:
            self._line(data, erase)
            return
        text = _KEYS.sub(self._sequence, data)
        # Ctrl-D deletes a character of a draft, or nothing.
        for octet in text:
            if octet in b"\r\n\x03\x15":
                self._sent()
            elif octet in (0x08, 0x7F):
                self.draft = self.draft if self.moved else max(self._handed, self.draft - 1)
            elif octet in (0x0E, 0x10, 0x12, 0x19, 0x1F):  # an earlier line, a search, what was cut: it comes back
                self.draft, self.moved = max(self.draft, 1), True
            elif octet in (0x01, 0x02, 0x05, 0x06):
                self.moved = self.moved or self.draft > 0
            elif octet >= 0x20 and octet & 0xC0 != 0x80:
                self.draft += 1

    def _client(self, data: bytes) -> None:
        """Keys of a person in a client that says what it is doing.

        Its line has lists, modes, a history and an editor, and Enter may choose from a list. So a line is empty
        only where nothing but text was typed and sent or taken back, after a turn has taken it, or after Ctrl-C.
        """
        data, self._half = self._half + data, b""
        if (cut := _HALF.search(data)) is not None and len(data) - cut.start() < _TAIL:
            data, self._half = data[: cut.start()], data[cut.start() :]
        for found in _INPUT.finditer(data):
            if found["answer"] or found["event"] == b"3":  # a key that is let go
                continue
            self.ours = False
            code, mods = found["code"] or found["code2"], found["mods"] or found["mods2"]
            if code:
                self._press(_key(int(code), int(mods or 1) - 1))
            elif found["paste"]:
                if found[0] not in (b"\x1b[200~", b"\x1b[200~\x1b[201~"):
                    self._press(b"")
            else:
                self._press(found["one"] or (b"\x1b" if found[0] == b"\x1b" else b""))

    def _press(self, key: bytes) -> None:
        """One key: a character, or b"" for any that is not one."""
        self._entered = key == b"\r"
        if self._said == "waiting":
            return  # a dialog has it
        if key == b"\r":
            if self.plain:
                self._sent()  # sent or queued: text alone opens no list
        elif key == b"\x03" and self._said != "busy" and not self._searching:
            self._sent()
        elif key in (b"\x7f", b"\x08") and self.plain:
            self.draft = max(0, self.draft - 1)
        elif len(key) and key >= b" " and key != b"\x7f" and key not in _SPECIAL:
            self.draft += 1
        else:
            self.stashed = self.stashed or (key == b"\x13" and self.draft > 0)
            self._searching = key == b"\x12"
            self.draft, self.plain = max(self.draft, 1), False

    def _line(self, data: bytes, erase: bytes) -> None:
        """Keys of a person whose line the terminal itself edits: cursor and function keys are text there."""
        for octet in data:
            if self._quoted:
                self._quoted = False
                self.draft += 1
            elif octet == 0x16:  # Ctrl-V
                self._quoted = True
                self.draft += 1  # also where it is not a command of the terminal
            elif octet in b"\r\n\x03":
                self._sent()
            elif octet == 0x04:  # Ctrl-D hands the line over and does not end it: the program waits for the rest
                self._handed = self.draft
            elif octet == 0x15:
                self.draft = self._handed
            elif octet in erase:
                self.draft = self.draft if self.moved else max(self._handed, self.draft - 1)
            elif octet not in (0x0F, 0x11, 0x12, 0x13, 0x17, 0x1A, 0x1C) and octet & 0xC0 != 0x80:
                self.draft += 1

    def _sent(self) -> None:
        """Nothing unsent stands in the input line any more."""
        self.draft, self._handed, self.moved = 0, 0, False
        self.plain, self._searching = True, False

    @staticmethod
    def _sequence(found: re.Match[bytes]) -> bytes:
        if found[0].startswith(b"\x1b[200~"):
            return b"" if found[0] in (b"\x1b[200~", b"\x1b[200~\x1b[201~") else b"x"
        if _MOVES.fullmatch(found[0]):
            return b"\x10" if found[0][-1:] in b"AB" else b"\x01"  # up and down: an earlier line may stand there now
        return b""

    def output(self, now: int, data: bytes) -> None:
        """The program wrote."""
        self.output_at, self.wrote = now, True
        text = self._rest + data
        for found in _MODE.finditer(text):
            for number in found[1].split(b";"):
                if number:
                    (self.modes.add if found[2] == b"h" else self.modes.discard)(int(number))
                    self.pasted = self.pasted or self.pastes
        # Sets are safe to apply twice, so what may be half a sequence is simply looked at again.
        start = text.rfind(b"\x1b", -_TAIL)
        self._rest = text[start:] if start >= 0 and not _MODE.match(text, start) else b""

    def says(self, status: str, at: int = 0, now: int = 0, session: str = "") -> None:
        """The program's own status, since when, and the conversation. A turn that begins right after Enter has taken
        what stood in the input line; one that something else began leaves it there.

        One that was over before we looked shows only in the time. "" is a status that cannot be read, as while the
        program writes it: then nothing is typed, and what it says next is compared with what it said last.
        """
        self.status = status
        if not status:
            return
        before, self._said = self._said, status
        changed = bool(self._status_at) and at != self._status_at
        opened = status == "waiting" and before in ("idle", "shell")  # by a command in the line
        if opened or (status == "busy" and before != "busy") or (changed and status == before):
            if self.ours or (self._entered and now - self.key_at <= _TAKEN_MS):
                self._taken()
            self.ours = False
        if session and session != self._session:
            if self._session and self._entered and not self.stashed:
                self._sent()  # /clear, say
            self._session = session
        self._status_at, self.reads_status = at, True

    def proven(self) -> None:
        """The model was given what we typed last. A client does not write down the status of a turn that is over at
        once, so this may be all that tells that it stands in the line no more.
        """
        if self.ours:
            self._taken()
            self.ours = False

    def _taken(self) -> None:
        """A turn has taken what stood in the line."""
        self._sent()
        if self.stashed:
            self.draft, self.plain, self.stashed = 1, False, False

    def may(self, now: int) -> bool:
        """Whether something may be typed now: idle, nobody types, and nothing unsent stands there."""
        if now - self.key_at < STILL_MS or now - self.typed_at < SETTLE_MS or self.draft:
            return False
        if self.reads_status:
            return self.status in ("idle", "shell")
        quiet = now - self.output_at >= QUIET_MS
        return quiet and (self.wrote or now - self.started_at >= SILENT_MS)

    @property
    def pastes(self) -> bool:
        return 2004 in self.modes

    def way(self, canonical: bool, echo: bool, paste: bool) -> str:
        """How a message can be typed at present, by the modes of the terminal; `paste`: the person said it may be."""
        if self.reads_status:
            if not self.status or (self.pasted and not self.pastes):
                return ""  # it has lent the terminal to an editor, say, or is about to take it back
            return TERMINAL if self.pastes else NOTICE
        if canonical:
            return NOTICE if echo else ""  # without echo it is a password that is read
        return TERMINAL if paste and self.pastes else ""

    def typed(self, now: int) -> None:
        """Something of ours was typed. Until a turn has taken it, it may stand in the input line."""
        self.typed_at = now
        if self.reads_status:
            self.draft, self.ours, self.entered_again = 1, True, False

    def stuck(self, now: int) -> bool:
        """Whether Enter is to be pressed again: the client missed the one that followed our text.

        Nothing else can have come into the line: no key was touched since. Once only. A client that was merely slow
        gets it in an empty line, and the turn that then begins has taken our text all the same.
        """
        late = now - self.typed_at >= SETTLE_MS and self.status in ("idle", "shell")
        return self.ours and late and not self.entered_again


class Reference:
    """Looks for a text's reference in what the program writes, however that is cut, wrapped or coloured."""

    def __init__(self, reference: str) -> None:
        self._reference = reference.encode("ascii")
        self._tail = self._rest = b""
        self.found = False

    def output(self, data: bytes) -> None:
        """The program wrote."""
        data = self._rest + data
        cut = _UNFINISHED.search(data)
        whole = data[: cut.start()] if cut else data
        self._rest = data[cut.start() :][:_UNFINISHED_MAX] if cut else b""
        text = self._tail + _SEQUENCE.sub(b"", whole)
        self.found = self.found or (bool(self._reference) and self._reference in text)
        self._tail = text[-len(self._reference) :]


def _key(code: int, mods: int) -> bytes:
    """A key by its number as the character that it was before keyboards had numbers; b"" where there was none."""
    shift, alt, control = mods & 1, mods & 2, mods & 4
    if alt or mods & ~0b11000111 or (code == 13 and (shift or control)):
        return b""
    if control:
        return bytes([code & 0x1F]) if 97 <= code <= 122 else b""
    return chr(code).encode("utf-8", "replace") if code < 0x110000 and not 0xD800 <= code < 0xF900 else b""


def pasted(text: str) -> bytes:
    """A text as a bracketed paste, and Enter. No control character in it can end the paste or press a key."""
    clean = "".join(
        c for c in text.replace("\r\n", "\n") if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160)
    )
    return b"\x1b[200~" + clean.encode("utf-8", "replace") + b"\x1b[201~\r"


def notice(comment: bool) -> bytes:
    """One line that says that something waits, and Enter. As a comment it does nothing in a shell or interpreter."""
    return f"{'# ' if comment else ''}{WAITS}\r".encode("ascii")


if sys.platform == "win32":

    def run(
        command: Sequence[str], maildirs: Path, environ: dict[str, str], host: Host, own_status: bool, paste: bool
    ) -> int:
        """Not here: ConfigError."""
        raise ConfigError(f"this system has no pseudo-terminals ({REMEDY})")

else:
    import array
    import fcntl
    import pty
    import termios
    import tty

    def run(
        command: Sequence[str], maildirs: Path, environ: dict[str, str], host: Host, own_status: bool, paste: bool
    ) -> int:
        """Run a program in a pseudo-terminal over this one until it ends; its exit code, 128 + n for signal n.

        `own_status`: the program says whether it is idle, so until it does nothing is typed. `paste`: the person says
        that another one takes pastes. ConfigError, with the remedy, when this is no terminal or there is none. In the
        main thread, and before any other thread begins.
        """
        if not (os.isatty(0) and os.isatty(1)):
            raise ConfigError(f"input and output have to be a terminal ({REMEDY})")
        return _Supervisor(maildirs, environ, host, own_status, paste).run(command)

    class _Supervisor:
        """The loop around one child."""

        def __init__(
            self, maildirs: Path, environ: dict[str, str], host: Host, own_status: bool, paste: bool
        ) -> None:
            self._environ = environ
            self._config = clientfile.config_dir(environ)
            self._host, self._paste = host, paste
            self._typist = Typist(reads_status=own_status)
            self._terminal = Terminal.open(maildirs, os.getpid())
            self._pid = 0
            self._master = -1
            self._slave = ""
            self._to_child = bytearray()
            self._typing: tuple[Box, Path] | None = None  # claimed and typed, and not known to be taken
            self._last: tuple[Box, str] | None = None  # what was typed last, by its name
            self._reference: Reference | None = None  # of that text, while only the program can have written it
            self._looked = self._unserved_since = 0
            self._listens_to = 0  # the client whose status counts
            self._hosts = 0  # the client that our own agent serves
            self._own: tuple[int, str] | None = None  # the client, once seen, and its start
            self._way: str | None = None  # as it was told
            self._way_until = 0  # how long it is told although it is not so just now
            self._count = 0
            self._by = ""  # who served last: "own" or "client"
            self._input = True

        def run(self, command: Sequence[str]) -> int:
            before = termios.tcgetattr(0)
            self._start(command, before)
            now = time.monotonic_ns() // 1_000_000
            self._typist.started_at = self._unserved_since = now
            wake, signalled = os.pipe()
            os.set_blocking(signalled, False)
            os.set_blocking(wake, False)
            self._listen(signalled)
            code = 1  # what an exception leaves; the program, without its terminal, gets SIGHUP
            try:
                tty.setraw(0, termios.TCSAFLUSH)
                code = self._loop(wake, before)
            finally:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
                self._leave(code)
                signal.set_wakeup_fd(-1)
                for handle in (self._master, wake, signalled):
                    os.close(handle)
            return code

        def _start(self, command: Sequence[str], modes: list[Any]) -> None:
            named, naming = os.pipe()  # the child tells what its terminal is called
            try:
                self._pid, self._master = pty.fork()
            except OSError as error:
                raise ConfigError(f"no pseudo-terminal could be opened: {error.strerror} ({REMEDY})") from error
            if self._pid == 0:
                self._become(command, naming, modes)
            os.close(naming)
            self._resize()
            self._slave = os.read(named, 256).decode("utf-8", "replace")
            os.close(named)
            os.set_blocking(self._master, False)

        def _become(self, command: Sequence[str], naming: int, modes: list[Any]) -> None:
            """In the child. Never returns."""
            try:
                termios.tcsetattr(0, termios.TCSANOW, modes)
                os.write(naming, os.ttyname(0).encode())
                os.execvpe(command[0], list(command), self._environ)
            except OSError as error:
                os.write(2, f"error: {command[0]} did not start: {error.strerror}\n".encode())
            finally:
                os._exit(127)

        def _listen(self, pipe: int) -> None:
            """Signals wake the loop; those that end a program are handed to the child. The process is ours alone."""
            signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
            for name in ("TERM", "HUP", "INT", "QUIT", "USR1", "USR2"):
                signal.signal(signal.Signals["SIG" + name], self._hand_on)
            for number in (signal.SIGWINCH, signal.SIGCHLD):
                signal.signal(number, lambda *_: None)

        def _hand_on(self, number: int, _frame: object) -> None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

        def _resize(self) -> None:
            with suppress(OSError):
                size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

        def _loop(self, wake: int, modes: list[Any]) -> int:
            while True:
                reads = [self._master, wake, *([0] if self._input and len(self._to_child) < 65536 else [])]
                writes = [self._master] if self._to_child else []
                can_read, can_write, _ = select.select(reads, writes, [], LOOK_MS / 1000)
                now = time.monotonic_ns() // 1_000_000
                if self._master in can_read:
                    self._out(now)
                if 0 in can_read:
                    self._keys(now)
                if can_write:
                    self._feed()
                if wake in can_read:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                    self._resize()
                if wake in can_read or now - self._looked >= LOOK_MS:
                    code = self._ended(modes)
                    if code is not None:
                        while self._out(now):
                            pass
                        return code
                self._look(now)

        def _out(self, now: int) -> bool:
            """From the program to the terminal; False when there is nothing."""
            try:
                data = os.read(self._master, 65536)
            except OSError:  # nothing there; or EIO: nobody holds the other end
                data = b""
            if data:
                self._typist.output(now, data)
                if self._reference is not None:
                    if self._echoes():
                        self._reference = None
                    else:
                        self._reference.output(data)
                _write_all(1, data)
            else:
                time.sleep(0.01)  # the end itself is told by SIGCHLD
            return bool(data)

        def _keys(self, now: int) -> None:
            try:
                data = os.read(0, 65536)
            except OSError:
                data = b""
            if not data:  # the terminal is gone; SIGHUP says so to everybody
                self._input = False
                return
            self._hear(now)  # what these keys do depends on what the client does now, and not at the last look
            self._typist.keys(now, data, self._erase())
            self._to_child += data
            self._feed()

        def _feed(self) -> None:
            try:
                sent = os.write(self._master, self._to_child)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self._to_child)  # it takes nothing more
            del self._to_child[:sent]

        def _ended(self, modes: list[Any]) -> int | None:
            pid, status = os.waitpid(self._pid, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return None
            if os.WIFSTOPPED(status):
                self._stop(modes)
                return None
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

        def _stop(self, modes: list[Any]) -> None:
            """The program was suspended: so are we, with the terminal as it was, until somebody says go on."""
            termios.tcsetattr(0, termios.TCSADRAIN, modes)
            os.kill(os.getpid(), signal.SIGSTOP)
            tty.setraw(0, termios.TCSADRAIN)
            self._resize()
            self._hand_on(signal.SIGCONT, None)

        def _look(self, now: int) -> None:
            """See who serves, and type what waits, if this is the moment."""
            if now - self._looked < LOOK_MS:
                return
            self._looked = now
            try:
                self._settle()
                agent, client = self._served(now)
                self._listens_to = client
                self._hear(now)
                if self._last is not None and self._last[0].was_taken(self._last[1]):
                    self._typist.proven()
                self._say_way(now)
                if not agent or self._to_child:
                    return
                if self._typist.stuck(now) and self._typing is None and self._reads(client):
                    self._typist.entered_again = True
                    self._to_child += b"\r"
                    self._feed()
                elif self._typing is None and self._way:
                    box = self._terminal.box(agent)
                    names = box.waiting()
                    if names and self._typist.may(now) and self._reads(client):
                        self._type(box, names, now)
            except OSError:
                return  # the folder cannot be used at present: the program runs all the same

        def _hear(self, now: int) -> None:
            """What the client says that it is doing."""
            session = clientfile.read(self._listens_to, self._config) if self._listens_to else None
            if session is None:
                self._typist.says("", now=now)
            else:
                self._typist.says(session.status, session.status_at, now, session.id)

        # -- who serves

        def _served(self, now: int) -> tuple[int, int]:
            """The agent whose texts are typed, 0 for none, and the client whose session it serves.

            An agent that the client started goes before our own one, which begins when there is none for a while.
            """
            served = self._terminal.served()
            if served is not None and served.living:
                self._unserved_since = now
                if self._hosts or self._terminal.hosting:
                    self._let_go()
                self._by = "client"
                return (0 if self._terminal.hosting else served.agent), served.client
            client = self._client(now)
            if self._hosts:
                if self._host.ended():
                    self._let_go()
                    self._unserved_since = now + 15 * HOST_AFTER_MS  # it failed, as its log says
                elif client and client != self._hosts:  # another program has the session now
                    self._let_go()
                    self._unserved_since = now - HOST_AFTER_MS
                return (os.getpid() if self._hosts else 0), client
            if self._terminal.hosting:
                self._let_go()
            elif client and now - self._unserved_since >= HOST_AFTER_MS:
                self._begin(client)
            return 0, client

        def _begin(self, client: int) -> None:
            self._terminal.host(True)
            served = self._terminal.served()
            if served is not None and served.living:  # it came in this very moment, and waits for the mark to go
                self._terminal.host(False)
                return
            self._hosts, self._by = client, "own"
            self._host.begin(client)

        def _let_go(self) -> None:
            """Our own agent is to end; the mark says when it has."""
            self._hosts = 0
            self._host.end(over=False)
            if self._host.ended():
                self._terminal.host(False)

        def _client(self, now: int) -> int:
            """The process below us that runs the session; 0 while there is none, or only one without a person."""
            if self._own is not None and processes.alive(*self._own):
                return self._own[0]
            self._own = None
            session = clientfile.below(self._pid, self._config)
            if session is not None:
                nearest = above(self._terminal.path.parent, session.pid, self._environ)
                if nearest is None or nearest.path != self._terminal.path:
                    return 0  # another supervisor is between us and it
                self._own = (session.pid, session.start)
                self._unserved_since = now  # its own agent is starting beside it
                return session.pid
            return 0 if self._typist.reads_status else self._pid

        # -- what can be typed

        def _say_way(self, now: int) -> None:
            """Tell agents how a message can be typed. What is only so for a moment, as a password, is not told."""
            way = self._way_now()
            if way == self._way:
                self._way_until = now + WAY_MS
            elif way or now >= self._way_until:
                self._terminal.say(way)
                self._way = way

        def _way_now(self) -> str:
            try:
                modes = termios.tcgetattr(self._master)[3]
            except (OSError, termios.error):
                return ""
            return self._typist.way(bool(modes & termios.ICANON), bool(modes & termios.ECHO), self._paste)

        def _erase(self) -> bytes:
            """The terminal's erase character while the program reads lines, else nothing."""
            try:
                modes = termios.tcgetattr(self._master)
            except (OSError, termios.error):
                return b""
            return bytes(modes[6][termios.VERASE]) if modes[3] & termios.ICANON else b""

        def _echoes(self) -> bool:
            """Whether the terminal itself writes what is typed, or may do so."""
            try:
                return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)
            except (OSError, termios.error):
                return True

        def _reads(self, client: int) -> bool:
            """Whether this client reads what is typed now: it has the terminal, and has not lent it to an editor.

            Any other program may have started another one that reads for it.
            """
            try:
                if os.tcgetpgrp(self._master) != os.getpgid(client):
                    return False
            except OSError:
                pass  # not every system tells
            return not (self._typist.reads_status and _others_read(self._slave, client))

        def _type(self, box: Box, names: list[str], now: int) -> None:
            way = self._way_now()
            if not way:
                return
            claims = [c for name in (names[:1] if way == TERMINAL else names) if (c := box.claim(name)) is not None]
            if not claims:
                return
            try:
                plain = body(claims[0]) if way == TERMINAL else ""
            except (OSError, ValueError):
                with suppress(OSError):
                    box.finish(claims[0], shown=False)  # garbage: its agent takes the message back
                return
            text = pasted(plain) if way == TERMINAL else notice(not self._typist.reads_status)
            self._typist.typed(now)
            self._to_child += text
            self._feed()
            self._count += 1
            if way == TERMINAL:
                self._typing = (box, claims[0])
                self._last = (box, claims[0].name.rpartition(".")[0])
                reference = native.reference(plain)
                self._reference = None if not reference or self._echoes() else Reference(reference)
                return
            for claim in claims:
                with suppress(OSError):
                    box.finish(claim, shown=False)

        def _settle(self) -> None:
            """Tell what is known to be taken.

            A client with a transcript only has to leave nothing of it in the terminal: its records say the rest. Of
            any other program nothing is known until it has itself written the reference: a queue can be thrown away.
            """
            if self._typing is None or self._to_child:
                return
            if self._reference is not None and self._echoes():
                self._reference = None  # what is still on its way to the program would be written by the terminal
            if _empty(self._slave) if self._typist.reads_status else self._reference and self._reference.found:
                box, claim = self._typing
                try:
                    box.finish(claim, shown=True)
                except FileNotFoundError:
                    pass  # its agent has forgotten it
                except OSError:
                    return  # said at the next look
                self._typing = self._reference = None

        def _leave(self, code: int) -> None:
            """What the program left on in the terminal, when it could not clean up; and our own agent."""
            if code > 128 and self._typist.modes:
                off = b"".join(b"\x1b[?%dl" % mode for mode in sorted(self._typist.modes - {7, 12, 25}))
                with suppress(OSError):
                    _write_all(1, off + b"\x1b[?25h\x1b[<u\x1b[>4m\x1b[0m\r\n")
            self._host.end(over=True)
            self._host.join(LEAVE_S)
            with suppress(OSError):
                shutil.rmtree(self._terminal.path, ignore_errors=True)
            with suppress(OSError):
                os.write(2, f"talkbus: {self._told()}\n".encode())

        def _told(self) -> str:
            """How the session was on the bus, in one line."""
            typed = f"typed in {self._count} time{'s' * (self._count != 1)}"
            if self._by == "own" and self._host.name:
                return f"this session was on the bus as {self._host.name}, served by this command; {typed}"
            if self._by == "client":
                return f"this session was on the bus by the client's own talkbus server; {typed}"
            return "this session did not join the bus: it ended before that, or never said what it is doing"

    def _empty(slave: str) -> bool:
        """Whether nothing that was typed is left to be read. Polling has the kernel hand over what is on its way."""
        try:
            handle = os.open(slave, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            select.select([handle], [], [], 0)
            count = array.array("i", [1])
            fcntl.ioctl(handle, termios.FIONREAD, count)
            return count[0] == 0
        except OSError:
            return False
        finally:
            os.close(handle)

    def _others_read(slave: str, client: int) -> bool:
        """Whether a process below the client has opened the terminal to read, as an editor has; Linux alone tells.

        What it writes to does not count: a tool may complain there.
        """
        if sys.platform != "linux":
            return False
        return any(
            _reads_from(entry, {slave, "/dev/tty"}) and client in processes.ancestors(int(entry))
            for entry in os.listdir("/proc")
            if entry.isdecimal() and int(entry) != client
        )

    def _reads_from(entry: str, places: set[str]) -> bool:
        """Whether a process of /proc has one of these open for reading."""
        try:
            handles = set(os.listdir(f"/proc/{entry}/fd")) - {"1", "2"}
        except OSError:
            return False
        for handle in handles:
            link = f"/proc/{entry}/fd/{handle}"
            with suppress(OSError):
                if os.readlink(link) in places and os.lstat(link).st_mode & stat.S_IRUSR:
                    return True
        return False


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(handle, view) :]
        except BlockingIOError:
            select.select([], [handle], [])
