"""The tables of an evaluation, in the terminal."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.errors import printable
from engine.evaluation import Interval, Summary

_FIRST_COLUMN, _COLUMN = 22, 18  # in letters, as the widest entries need


def print_summary(summary: Summary, console: Console) -> None:
    """Print tables in the papers' form: a row for each measure, a column for each method, the best mean in bold."""
    methods = list(summary.methods)
    for subset, pairs in summary.pairs.items():
        if not pairs or not summary.measures:
            continue
        means = {(key[1], key[2]): cell.interval for key, cell in summary.cells.items() if key[0] == subset}
        title = f"{subset}: {summary.counted(subset)}"
        _print_cells(summary, title, subset, methods, means, console)
        if summary.reference is not None and len(methods) > 1:
            others = [method for method in methods if method != summary.reference]
            differences = {(key[1], key[2]): cell.difference for key, cell in summary.cells.items() if key[0] == subset}
            title = f"{subset}: difference from {summary.reference}"
            _print_cells(summary, title, subset, others, differences, console, signed=True)
    _print_costs(summary, console)


def _print_cells(
    summary: Summary,
    title: str,
    subset: str,
    methods: Sequence[str],
    cells: Mapping[tuple[str, str], Interval | None],
    console: Console,
    *,
    signed: bool = False,
) -> None:
    """Print one table, in parts as wide as the terminal; of differences, if it is signed."""
    at_once = max(1, (console.width - _FIRST_COLUMN) // _COLUMN)
    for start in range(0, len(methods), at_once):
        part = methods[start : start + at_once]
        table = _table(title, "", [summary.heading(subset, method) for method in part])
        for measure in summary.measures:
            best = None if signed else summary.best(subset, measure)
            row = []
            for method in part:
                interval = cells[method, measure.name]
                text = Text("–")
                if interval is not None:
                    text = Text(measure.text(interval.mean, signed=signed), "bold" if interval.mean == best else "")
                    text.append(f"\n{measure.range_text(interval, signed=signed)}", "not bold dim")
                row.append(text)
            table.add_row(measure.heading, *row)
        console.print(table)


def _print_costs(summary: Summary, console: Console) -> None:
    table = _table("cost", "method", ("pairs", "photos", "failed", "ms, median", "images through the network"))
    for method, cost in summary.costs.items():
        images = ", ".join(f"{graph} {count:,.0f}" for graph, count in cost.evaluations.items())
        time = "–" if cost.milliseconds is None else f"{cost.milliseconds:,.0f}"
        counts = (cost.pairs, cost.photos, cost.failures)
        table.add_row(Text(printable(method)), *map(str, counts), time, Text(printable(images)))
    console.print(table)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=Text(printable(title), "bold"))
    table.add_column(first)
    for heading in columns:
        table.add_column(Text(printable(heading)), justify="right", overflow="fold")
    return table
