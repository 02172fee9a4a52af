"""Gradient rules broken on purpose: for each operator networks that need its rule, and the ways to get it wrong."""

from tests.export.broken import activations, arithmetic, normalizations, reductions, shaping, spatial
from tests.export.broken.case import Case

CASES: tuple[Case, ...] = (
    *activations.CASES,
    *arithmetic.CASES,
    *normalizations.CASES,
    *reductions.CASES,
    *shaping.CASES,
    *spatial.CASES,
)
