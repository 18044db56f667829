"""Repeat seeds of the simulation: ``python -m tests.simulation SEED [LAST] [--trace]`` from the repository's root."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulation.simulate import simulate


def main(arguments: list[str]) -> int:
    numbers = [int(a) for a in arguments if not a.startswith("-")]
    if not numbers:
        print(__doc__, file=sys.stderr)
        return 2
    failed, began = 0, time.process_time()
    for seed in range(numbers[0], numbers[-1] + 1):
        try:
            result = simulate(seed)
        except Exception as error:
            failed += 1
            result = getattr(error, "result", None)
            notes = getattr(error, "__notes__", [])
            print(f"seed {seed}: {type(error).__name__}: {error}", *notes, sep="\n", flush=True)
            print(f"seed {seed}: {type(error).__name__}: {error}", *notes, sep="\n", flush=True)
        if "--trace" in arguments and result is not None:
            print("\n".join(result.trace))
    count = numbers[-1] - numbers[0] + 1
    print(f"{count} seeds, {failed} failed, {time.process_time() - began:.1f} s of processor time", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
