"""Comparing explanation methods on a data set: `evaluate` fills a results file, `summarise` says what is in it."""

from engine.evaluation.bootstrap import Interval, bootstrap_mean
from engine.evaluation.controls import CONTROLS, EVALUATED
from engine.evaluation.dataset import read_dataset
from engine.evaluation.pairs import Choice
from engine.evaluation.report import write_report
from engine.evaluation.run import evaluate
from engine.evaluation.sample import Box, Dataset, Sample
from engine.evaluation.store import Outcome, Pair, Store
from engine.evaluation.summary import Cell, Cost, Measure, Summary, summarise

__all__ = [
    "CONTROLS",
    "EVALUATED",
    "Box",
    "Cell",
    "Choice",
    "Cost",
    "Dataset",
    "Interval",
    "Measure",
    "Outcome",
    "Pair",
    "Sample",
    "Store",
    "Summary",
    "bootstrap_mean",
    "evaluate",
    "read_dataset",
    "summarise",
    "write_report",
]
