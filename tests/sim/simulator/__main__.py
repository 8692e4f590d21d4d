"""`python -m simulator`: many seeds, or one in detail. The exit code is 1 when a run has failed."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

from simulator.many import KINDS, run_many, run_one
from simulator.nemesis import BLACKOUTS, FAULTS
from simulator.outcome import Outcome

KNOWN = (*FAULTS, BLACKOUTS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this seed alone, with everything that happened in it")
    parser.add_argument(
        "--world",
        choices=[*KINDS, "both"],
        default="both",
        help="storage alone, files with metadata servers, or storage with every seed and files with every fourth",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual seconds of faults in each run")
    parser.add_argument(
        "--faults", type=_faults, default=(), help="these alone, as freeze,island; of " + " ".join(KNOWN)
    )
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="runs side by side")
    parser.add_argument("--keep", type=Path, help="write what happened in runs that fail to this folder")
    parser.add_argument("--until-failure", action="store_true", help="stop at the first run that fails")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        kind = "storage" if arguments.world == "both" else arguments.world
        return _show(run_one(kind, arguments.seed, arguments.seconds, arguments.faults, verbose=True))
    return run_many(
        arguments.first,
        arguments.runs,
        seconds=arguments.seconds,
        jobs=arguments.jobs,
        faults=arguments.faults,
        world=arguments.world,
        until_failure=arguments.until_failure,
        keep=arguments.keep,
    )


def _faults(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(KNOWN):
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(sorted(unknown))}")
    return names


def _show(outcome: Outcome) -> int:
    print("\n".join(outcome.trace))
    print("\n".join(outcome.problems) or f"seed {outcome.seed}: everything is explained")
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
