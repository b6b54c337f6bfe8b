"""How a mutant is made, run and found: an edit of the source of a function, or another order of a shell.

Only the kinds of violation that a mutant names count: what dies of something else proves nothing.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any

from bus.ops import OPS
from tests.sim.app import AppSeat
from tests.sim.faults import SimHub
from tests.sim.plan import Run
from tests.sim.truth import Truth, Violation

NEVER = 10**9


@dataclass(frozen=True, slots=True)
class Edit:
    """`old` becomes `new` in the source of a function of a module or class; it must be there exactly once."""

    owner: Any
    name: str
    old: str
    new: str

    def make(self) -> Any:
        found = getattr(self.owner, self.name)
        original: Any = found.fget if isinstance(found, property) else found
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.name} has {self.old!r} {source.count(self.old)} times"
        space: dict[str, Any] = {}
        module = inspect.getmodule(original)
        assert module is not None
        code = compile("from __future__ import annotations\n" + source.replace(self.old, self.new), "mutant", "exec")
        exec(code, module.__dict__ | {"__name__": module.__name__}, space)
        made = space[self.name]
        # Names are looked up where the original looks them up, so that other edits and tests are seen.
        if isinstance(made, property):
            assert isinstance(made.fget, FunctionType)
            return property(FunctionType(made.fget.__code__, module.__dict__, self.name))
        return FunctionType(made.__code__, module.__dict__, self.name, made.__defaults__, made.__closure__)


@dataclass(frozen=True, slots=True)
class Mutant:
    """What it lacks, the kinds that must find it, and how it is made."""

    lacks: str
    kinds: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    hub: type[SimHub] = SimHub
    seat: type[AppSeat] = AppSeat
    schedule: Callable[[], None] | None = None  # directed; else seeds
    start: int = 0  # a seed that found it once; the search begins there
    seeds: int = 400

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The code under test lacks the rule meanwhile."""
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(patched(edit.owner, edit.name, edit.make()))
            yield

    def run(self, seed: int, trace: list[str] | None = None) -> None:
        """One seed; Violation when it is found."""
        with self.applied():
            truth = Truth(only=self.kinds, trace=trace)
            Run(seed, truth=truth, hub=self.hub, seat=self.seat, check_every=NEVER).go()

    def found(self) -> str:
        """How it is found; "" when it is not."""
        if self.schedule is not None:
            return self._directed()
        with self.applied():
            pass  # an edit that does not fit its function any more is told, and not taken for a seed that broke
        for seed in range(self.start, self.start + self.seeds):
            try:
                self.run(seed)
            except Violation as violation:
                return f"seed {seed}: {violation}"
            except Exception:
                continue  # it broke something else; that does not count
        return ""

    def _directed(self) -> str:
        assert self.schedule is not None
        self.schedule()  # the code as it is does well
        with self.applied():
            try:
                self.schedule()
            except AssertionError as error:
                return f"directed ({self.schedule.__name__}): {error}"
        return ""


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A function replaced, in every module that imported it by name too."""
    original = getattr(owner, name)
    places = [owner]
    if isinstance(owner, ModuleType):
        ours = [m for n, m in list(sys.modules.items()) if m and n.split(".")[0] in ("bus", "agent")]
        places = [m for m in ours if getattr(m, name, None) is original]
    operations = {n: op for n, op in OPS.items() if op.handler is original}
    for place in places:
        setattr(place, name, value)
    OPS.update({n: replace(op, handler=value) for n, op in operations.items()})
    try:
        yield
    finally:
        for place in places:
            setattr(place, name, original)
        OPS.update(operations)
