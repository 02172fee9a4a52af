"""Comparing several ways by rounds in which each has its turn, so that what slows the machine slows all of them."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

_SETTLE_S = 0.2  # the threads of every runtime spin for some milliseconds after their last work

Block = TypeVar("Block")


def alternate(
    ways: Mapping[str, Callable[[], Block]], rounds: int, *, settle_s: float = _SETTLE_S
) -> list[dict[str, Block]]:
    """Run all ways in turn, in every other round backwards; return for each round what they returned."""
    found = []
    for number in range(rounds):
        results = {}
        for name in ways if number % 2 == 0 else reversed(list(ways)):
            time.sleep(settle_s)
            results[name] = ways[name]()
        found.append(results)
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
