"""Many seeds side by side, in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import Counter
from pathlib import Path

from simulator.file_run import run_files_seed
from simulator.outcome import Outcome
from simulator.run import run_seed

KINDS = ("storage", "files")
Task = tuple[str, int, float, tuple[str, ...]]  # kind, seed, virtual seconds, faults
FILES_EVERY = 4  # of so many seeds, one runs with files too
RUNS_OF_A_PROCESS_MAX = 200  # then a fresh one: what a run leaves behind is not to add up
TRACES_KEPT_MAX = 20


def tasks_of(first: int, runs: int, seconds: float, world: str, faults: tuple[str, ...] = ()) -> list[Task]:
    """What to run: with `world` "both", every seed with storage alone, and a share of them with files too."""
    tasks = []
    for seed in range(first, first + runs):
        if world in ("storage", "both"):
            tasks.append(("storage", seed, seconds, faults))
        if world == "files" or (world == "both" and seed % FILES_EVERY == 0 and not faults):
            tasks.append(("files", seed, seconds, ()))
    return tasks


def run_one(kind: str, seed: int, seconds: float, faults: tuple[str, ...] = (), *, verbose: bool = False) -> Outcome:
    """`faults` are of the storage world, which is chosen by `kind`."""
    if kind == "storage":
        return run_seed(seed, seconds, faults, verbose=verbose)
    return run_files_seed(seed, seconds, verbose=verbose)


def one(task: Task) -> Outcome:
    """One seed; a broken simulator counts as a failed run."""
    kind, seed, seconds, faults = task
    try:
        outcome = run_one(kind, seed, seconds, faults)
    except Exception:
        return Outcome(seed, [traceback.format_exc()], [], kind=kind)
    if not outcome.problems:
        outcome.trace = []  # not worth its way to the parent
    return outcome


def run_many(
    first: int,
    runs: int,
    *,
    seconds: float,
    jobs: int,
    faults: tuple[str, ...] = (),
    world: str = "both",
    until_failure: bool = False,
    keep: Path | None = None,
) -> bool:
    """Run `runs` seeds from `first` on and print which failed; whether any did.

    `world`: a name of KINDS, or "both". `keep`: a folder for what happened.
    """
    began_s = time.perf_counter()
    counts: Counter[str] = Counter()
    virtual_s = 0.0
    done = failed = 0
    named = f" FAULTS={','.join(faults)}" if faults else ""
    tasks = tasks_of(first, runs, seconds, world, faults)
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=RUNS_OF_A_PROCESS_MAX) as pool:
        for outcome in pool.imap_unordered(one, tasks):
            done += 1
            counts.update(outcome.counts)
            virtual_s += outcome.virtual_s
            if outcome.problems:
                failed += 1
                world_of = f" WORLD={outcome.kind}" if outcome.kind != "storage" else ""
                print(f"seed {outcome.seed} FAILED: {outcome.problems[0]}")
                print(f"  again, with all that happened: make sim SEED={outcome.seed}{world_of}{named}", flush=True)
                if keep is not None and failed <= TRACES_KEPT_MAX:
                    again = run_one(outcome.kind, outcome.seed, seconds, faults, verbose=True)
                    text = "\n".join([*again.trace, *again.problems])
                    (keep / f"{outcome.kind}-{outcome.seed}.txt").write_text(text, encoding="utf-8")
                if until_failure:
                    pool.terminate()
                    break
    print(
        f"{done} runs, {failed} failed, {virtual_s / 3600:.1f} virtual hours in {time.perf_counter() - began_s:.0f} s; "
        + ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    )
    return bool(failed)
