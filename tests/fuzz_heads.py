"""Coverage-guided fuzzing of what a paired machine, or one that knocks, may send: `python -m tests.fuzz_heads [SECONDS]`.

Needs atheris (pip install atheris; not part of the tests' requirements). Inputs that reached new code are kept in
tests/seeds, and one that breaks the broker in crash-*; the tests replay the seeds without atheris.
"""

from __future__ import annotations

import sys
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"


def frames(data: bytes) -> list[bytes]:
    """One input as frames: an octet of length before each piece but the last, after the signature."""
    from bus.wire import SIGNATURE

    made = [SIGNATURE]
    while data:
        size = data[0] * 16
        made.append(data[1 : 1 + size])
        data = data[1 + size :]
    return made


def once(data: bytes) -> None:
    """Feed it to a broker in each state it may meet; whatever is broken raises."""
    from bus.core import Who
    from tests.test_enrolment import FAR, LAPTOP, OWNER, Rig, machine

    rig = Rig(**machine())
    rig.hello(OWNER, "api")
    rig.who[LAPTOP] = Who(FAR, "laptop", "member")
    said = frames(data)
    rig.raw(LAPTOP, said)
    rig.hello(LAPTOP, "eve")
    rig.raw(LAPTOP, said)
    rig.raw(LAPTOP, said)
    rig.outboxes[OWNER] = 0
    rig.invite()
    rig.knock(said)
    box = rig.broker.core.mailbox_named("H" * 40, "api")
    assert box is not None and box.inst == OWNER.decode() and len(rig.roll) == 2
    assert rig.say(OWNER, {"c": "PING", "k": 1})[0].k == 1


def main() -> None:
    import atheris  # type: ignore[import-not-found]

    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    SEEDS.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=["bus"]):
        import bus.broker
        import bus.wire  # noqa: F401
    arguments = [
        sys.argv[0],
        str(SEEDS),
        f"-max_total_time={seconds}",
        "-max_len=600",
        f"-artifact_prefix={SEEDS}/crash-",
    ]
    atheris.Setup(arguments, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
