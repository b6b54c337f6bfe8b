"""python -m tests.sim --seeds A:B [--jobs N] | --seed S [--trace] | [--mutant NAME] | --mutants"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator

from tests.sim.plan import Run
from tests.sim.truth import Truth


def attempt(seed: int, trace: list[str] | None = None, mutant: str = "") -> str:
    """Run one seed; "" when it is well, else the violation."""
    try:
        if mutant:
            from tests.sim.mutants import MUTANTS

            MUTANTS[mutant].run(seed, trace)
        else:
            Run(seed, truth=Truth(trace=trace)).go()
    except AssertionError as error:
        return f"{type(error).__name__} {error}"
    except Exception as error:
        return f"{type(error).__name__} {error}\n{traceback.format_exc(limit=-6)}"
    return ""


def _one(job: tuple[int, str]) -> tuple[int, str]:
    gc.disable()  # a run leaves little behind, and the collector costs a fifth of the time
    if job[0] % 100 == 0:
        gc.collect()
    return job[0], attempt(job[0], mutant=job[1])


def failures(seeds: range, jobs: int, mutant: str = "") -> Iterator[tuple[int, str]]:
    """The seeds that fail, with why."""
    work = ((seed, mutant) for seed in seeds)
    if jobs <= 1:
        yield from (found for found in map(_one, work) if found[1])
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from (found for found in pool.imap_unordered(_one, work, chunksize=20) if found[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="seeded runs of broker and links")
    parser.add_argument("--seeds", default="0:1000", help="A:B, the seeds to run")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="with --seed: everything that happened")
    parser.add_argument("--mutant", default="", help="a broken variant by name")
    parser.add_argument("--mutants", action="store_true", help="every mutant, how it is caught")
    parser.add_argument("--most", type=int, default=5, help="stop after so many failing seeds")
    args = parser.parse_args()
    if args.mutants:
        from tests.sim.mutants import report

        return report()
    if args.seed is not None:
        lines: list[str] | None = [] if args.trace else None
        found = attempt(args.seed, lines, args.mutant)
        print("\n".join(lines or ()))
        print(found or "no violation")
        return bool(found)
    first, _, last = args.seeds.partition(":")
    seeds = range(int(first), int(last))
    began, bad = time.monotonic(), 0
    for seed, found in failures(seeds, args.jobs, args.mutant):
        bad += 1
        also = f" --mutant {args.mutant}" if args.mutant else ""
        print(f"seed {seed}: {found[:1500]}\n  python -m tests.sim --seed {seed} --trace{also}", flush=True)
        if bad >= args.most:
            break
    took = time.monotonic() - began
    print(f"{len(seeds)} seeds, {bad} failing, {took:.1f} s, {len(seeds) / took:.0f} seeds/s")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
