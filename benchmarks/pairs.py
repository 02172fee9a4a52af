"""Comparing two ways by blocks that alternate, so that what slows the machine for a while slows both."""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

_SETTLE_S = 0.2  # the threads of both runtimes spin for some milliseconds after their last work

Block = TypeVar("Block")


def alternate(
    first: Callable[[], Block], second: Callable[[], Block], pairs: int, *, settle_s: float = _SETTLE_S
) -> list[tuple[Block, Block]]:
    """Run two blocks in turn, in the order first, second, second, first, first, …; return what they returned."""
    found = []
    for number in range(pairs):
        results = {}
        for block in (first, second) if number % 2 == 0 else (second, first):
            time.sleep(settle_s)
            results[block] = block()
        found.append((results[first], results[second]))
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    """The median with its interval: the smallest and the largest value, and how probable it is that they enclose it.

    The median of the distribution lies outside only when all values fall on one side of it: 2·(1/2)^n.
    """
    return {
        "median": median(values),
        "low": min(values),
        "high": max(values),
        "confidence": 1.0 - math.ldexp(1.0, 1 - len(values)),
    }


def spread(values: Sequence[float]) -> float:
    """The range of the values as a share of their median."""
    return (max(values) - min(values)) / median(values)
