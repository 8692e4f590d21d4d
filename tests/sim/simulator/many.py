"""Many seeds side by side, in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import Counter
from pathlib import Path

from simulator.run import Outcome, run_seed

RUNS_OF_A_PROCESS_MAX = 200  # then a fresh one: what a run leaves behind is not to add up
TRACES_KEPT_MAX = 20


def one(task: tuple[int, float, tuple[str, ...]]) -> Outcome:
    """One seed; a broken simulator counts as a failed run."""
    seed, seconds, faults = task
    try:
        outcome = run_seed(seed, seconds, faults)
    except Exception:
        return Outcome(seed, [traceback.format_exc()], [])
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
    until_failure: bool = False,
    keep: Path | None = None,
) -> bool:
    """Run `runs` seeds from `first` on and print which failed; whether any did. `keep`: a folder for what happened."""
    began_s = time.perf_counter()
    counts: Counter[str] = Counter()
    virtual_s = 0.0
    done = failed = 0
    named = f" FAULTS={','.join(faults)}" if faults else ""
    tasks = [(seed, seconds, faults) for seed in range(first, first + runs)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, maxtasksperchild=RUNS_OF_A_PROCESS_MAX) as pool:
        for outcome in pool.imap_unordered(one, tasks):
            done += 1
            counts.update(outcome.counts)
            virtual_s += outcome.virtual_s
            if outcome.problems:
                failed += 1
                print(f"seed {outcome.seed} FAILED: {outcome.problems[0]}")
                print(f"  again, with all that happened: make sim SEED={outcome.seed}{named}", flush=True)
                if keep is not None and failed <= TRACES_KEPT_MAX:
                    again = run_seed(outcome.seed, seconds, faults, verbose=True)
                    text = "\n".join([*again.trace, *again.problems])
                    (keep / f"seed-{outcome.seed}.txt").write_text(text, encoding="utf-8")
                if until_failure:
                    pool.terminate()
                    break
    print(
        f"{done} runs, {failed} failed, {virtual_s / 3600:.1f} virtual hours in {time.perf_counter() - began_s:.0f} s; "
        + ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    )
    return bool(failed)
