"""Mutates bundles, models and photos for as long as wanted; only an `EngineError` or a right result may come out.

`python -m benchmarks.fuzz --minutes 15` takes the kinds of tests/fuzz in turn and prints a table. Each finding is
printed with its seed; `--kind KIND --seed SEED --examples 1` repeats it.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.fuzz.stage import Stage
from tests.fuzz.worker import Outcome, Worker


def main() -> int:
    """Run examples and print what became of them; 1 when there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="when to stop")
    parser.add_argument("--examples", type=int, default=sys.maxsize, help="how many examples of each kind at most")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first example of each kind; then one more each"
    )
    parser.add_argument("--kind", help="one kind only")
    options = parser.parse_args()
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder, Worker() as worker:
        stage = Stage(Path(folder), worker)
        kinds = [options.kind] if options.kind else list(stage.kinds)
        end = time.monotonic() + 60 * options.minutes
        for seed in itertools.islice(itertools.count(options.seed), options.examples):
            if time.monotonic() > end:
                break
            for kind in kinds:
                example = stage.kinds[kind](Random(f"{kind} {seed}"))
                began = time.monotonic()
                outcome = stage.attempt(example)
                figures.setdefault(kind, Figures()).add(outcome, time.monotonic() - began)
                if outcome.is_finding:
                    print(f"FINDING --kind {kind!r} --seed {seed}\n  {example.what}\n  {outcome}", flush=True)
    print("| kind | examples | done | refused | findings | mean ms | longest s | largest MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, row in figures.items():
        print(f"| {kind} | {row} |")
    return int(any(row.findings for row in figures.values()))


class Figures:
    """What became of the examples of one kind."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.findings = 0
        self.seconds = 0.0
        self.longest_seconds = 0.0
        self.peak_bytes = 0

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count one example."""
        self.kinds[outcome.kind] += 1
        self.findings += outcome.is_finding
        self.seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)

    def __str__(self) -> str:
        count = self.kinds.total()
        cells = (count, self.kinds["done"], self.kinds["refused"], self.findings, round(1e3 * self.seconds / count))
        return " | ".join(map(str, (*cells, round(self.longest_seconds, 1), self.peak_bytes >> 20)))


if __name__ == "__main__":
    sys.exit(main())
