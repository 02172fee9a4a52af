"""The results of an evaluation as files: tables in CSV, everything in JSON, and a page to read."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from engine.evaluation.bootstrap import LEVEL, RESAMPLES, Interval
from engine.evaluation.page import page
from engine.evaluation.store import Store
from engine.evaluation.summary import Summary
from engine.explanation import write_whole

INTERVALS = f"{LEVEL:.0%} percentile bootstrap over photos, {RESAMPLES} draws"


def write_report(store: Store, summary: Summary, folder: str | Path) -> list[Path]:
    """Write `summary.csv`, `pairs.csv`, `summary.json` and `report.html`, in place of those that are there.

    Args:
        store: The results.
        summary: What `engine.evaluation.summarise` made of them.
        folder: A folder that exists.

    Returns:
        The files.

    Raises:
        OptionError: A file cannot be written, or the store cannot be read.
    """
    contents = {
        "summary.csv": _csv(_summary_rows(summary)),
        "pairs.csv": _csv(_pair_rows(store, summary)),
        "summary.json": json.dumps(as_json(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": page(store, summary, INTERVALS),
    }
    files = [Path(folder) / name for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        write_whole(file, content.encode())
    return files


def as_json(summary: Summary) -> dict[str, object]:
    """Return a summary in JSON's types; what has no value is null."""
    head, *rows = _summary_rows(summary)
    return {
        "settings": dict(summary.settings),
        "engines": list(summary.engines),
        "photos_looked_at": summary.looked_at,
        "photos": summary.photos,
        "pairs": dict(summary.pairs),
        "intervals": INTERVALS,
        "reference": summary.reference,
        "measures": [asdict(measure) for measure in summary.measures],
        "methods": {
            name: {"options": dict(options), "cost": asdict(summary.costs[name])}
            for name, options in summary.methods.items()
        },
        "results": [dict(zip(map(str, head), row, strict=True)) for row in rows],
        "failures": list(summary.failures),
    }


def _summary_rows(summary: Summary) -> list[list[object]]:
    """Return a heading, and a row for each subset, method and measure."""
    interval = ("mean", "low", "high", "pairs", "photos")
    rows: list[list[object]] = [
        ["subset", "method", "measure", *interval, "reference", *(f"difference_{name}" for name in interval)]
    ]
    for (subset, method, measure), cell in summary.cells.items():
        compared = summary.reference if cell.difference is not None else None
        rows.append([subset, method, measure, *_entries(cell.interval), compared, *_entries(cell.difference)])
    return rows


def _entries(interval: Interval | None) -> list[object]:
    if interval is None:
        return [None, None, None, 0, 0]
    return [interval.mean, interval.low, interval.high, interval.pairs, interval.photos]


def _pair_rows(store: Store, summary: Summary) -> list[list[object]]:
    """Return a heading, and a row for each pair and method."""
    measures = [measure.name for measure in summary.measures]
    head = ["photo", "class", "label", "score", "box_share", "method", "milliseconds", "scored", "scorable"]
    rows: list[list[object]] = [[*head, *measures, "error"]]
    pairs = {(pair.photo, pair.target): pair for pair in store.pairs()}
    for outcome in store.outcomes():
        pair = pairs[outcome.photo, outcome.target]
        about = [pair.photo, pair.target, pair.label, pair.score, pair.box_share]
        cost = [outcome.method, outcome.milliseconds, outcome.scored, outcome.scorable]
        rows.append([*about, *cost, *(outcome.measures.get(name) for name in measures), outcome.error])
    return rows


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
