"""What the results of benchmarks.budget say: tables, which goals are met, and what is both faster and better."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import heading
from benchmarks.ways import BUDGETS, EXACT, OTHERS, OURS, SAMPLED, Budgeted, Elsewhere, EqualScores, Strongest
from benchmarks.which_method import OF_PAPER
from engine.evaluation import Cell, Cost, Measure, Store, summarise
from engine.spelling import spell

Report = dict[str, Any]

LIKENESS = "spearman"
WHOLE_NETWORK = ("tapped", "last_layer", "forward")
"""Graphs, by how their names begin, that compute the whole network; the head alone costs next to nothing."""
POINT = 1.0
LIKENESS_GOALS = {100: 0.93, 50: 0.88}
INT8_GOALS = (0.99, 0.95)
SPEED_GOAL = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way on one network.

    Attributes:
        name: What tables call it.
        cost: Images that the whole network computed, or milliseconds; None where it was not measured.
        quality: By measure, more being better: the mean of exact Ada-SISE and the difference from it on the pairs that
            both have, so that a way with a sample of the pairs stands beside the others.
    """

    name: str
    cost: float | None
    quality: Mapping[str, float]


def figures_of(store: Store) -> Report:
    """Return in JSON's types what the tables show of one network."""
    summary = summarise(store, EXACT if EXACT in store.methods() else None)
    likeness: dict[str, list[float]] = {}
    for outcome in store.outcomes():
        value = outcome.measures.get(LIKENESS)
        if value is not None:
            likeness.setdefault(outcome.method, []).append(value)
    measures = [measure for measure in summary.measures if measure.name in OF_PAPER]
    return {
        "pairs": summary.pairs["all"],
        "photos": summary.photos,
        "failures": list(summary.failures),
        "measures": [
            {"name": m.name, "title": m.title, "unit": m.unit, "higher_is_better": m.higher_is_better} for m in measures
        ],
        "ways": {
            _name(method): {
                "pairs": summary.costs[method].pairs,
                "forwards": round(forwards(summary.costs[method]), 1),
                "measures": {m.name: _numbers(summary.cells["all", method, m.name]) for m in measures},
                LIKENESS: [round(float(value), 4) for value in quantiles(likeness[method])],
            }
            for method in summary.methods
            if method in likeness
        },
    }


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the 10th percentile and the least."""
    return float(np.median(values)), float(np.percentile(values, 10)), min(values)


def forwards(cost: Cost) -> float:
    """Return how many images the whole network computed for an explanation, in the mean."""
    return sum(count for graph, count in cost.evaluations.items() if graph.startswith(WHOLE_NETWORK))


def _name(method: str) -> str:
    return method.removeprefix(f"{Elsewhere.name}:way=")


def _numbers(cell: Cell) -> Report:
    return {
        what: None if interval is None else [_rounded(end) for end in (interval.mean, interval.low, interval.high)]
        for what, interval in (("mean", cell.interval), ("difference", cell.difference))
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def tables_of(report: Report, pictures: Mapping[str, Path]) -> list[str]:
    """Return all tables in markdown."""
    lines = []
    for name, picture in pictures.items():
        entry = report[name]
        lines += [f"## {name}", "", f"{entry['pairs']} pairs of photo and class on {entry['photos']} photos.", ""]
        lines += [f"![Cost against measures on {name}]({picture})", "", "### Ways", "", *_ways_table(entry), ""]
        lines += ["### Fewer forward passes", "", *_curve_table(entry), "", "### Goals", "", *goals(entry), ""]
        lines += [f"- Left out: {way}, {reason}" for way, reason in entry.get("left out", {}).items()]
    lines += _resnet50(report.get("resnet50", {}))
    return lines


def is_ours(way: str) -> bool:
    """Tell whether a way is a preset of Ada-SISE, in whatever precision."""
    return way.split(", ")[0] in OURS


def shown(entry: Report) -> list[str]:
    """Return the ways of the table and the picture, in their order: all but the curves."""
    curves = {EqualScores.name} | {spell(form(masks=n)) for form in (Budgeted, Strongest) for n in BUDGETS}
    ways = [way for way in entry["ways"] if way not in curves]
    first = [way for way in ways if is_ours(way)]
    known = [way for way in (*OTHERS, *SAMPLED) if way in ways]
    return [*first, *known, *(way for way in ways if way not in (*first, *known))]


def _measures(entry: Report) -> list[Measure]:
    return [Measure(**facts) for facts in entry["measures"]]


def _ways_table(entry: Report) -> Iterator[str]:
    measures, times = _measures(entry), entry.get("times", {})
    likeness = "ρ with exact: median / 10 % / worst"
    yield from heading("way", "pairs", "forward passes", "ms", *(m.heading for m in measures), likeness)
    for way in shown(entry):
        of_way, taken = entry["ways"][way], times.get(way)
        took = "" if taken is None else f"{taken['median']:,.0f} ({taken['low']:,.0f} … {taken['high']:,.0f})"
        cells = [str(of_way["pairs"]), f"{of_way['forwards']:,.0f}", took, *_cells(of_way, measures)]
        yield _row(way, *cells, " / ".join(f"{value:.3f}" for value in of_way[LIKENESS]))


def _curve_table(entry: Report) -> Iterator[str]:
    measures = _measures(entry)
    yield from heading("masks", "the others", *(m.heading for m in measures), "ρ with exact: median / 10 % / worst")
    rows = [(0, "all scores equal", EqualScores.name)]
    for count in BUDGETS:
        rows += [(count, "estimated", spell(Budgeted(masks=count))), (count, "left out", spell(Strongest(masks=count)))]
    for count, others, way in rows:
        if way in entry["ways"]:
            of_way = entry["ways"][way]
            likeness = " / ".join(f"{value:.3f}" for value in of_way[LIKENESS])
            yield _row(str(count), others, *_cells(of_way, measures), likeness)


def _cells(of_way: Report, measures: Sequence[Measure]) -> list[str]:
    """Return each measure with its difference from exact."""
    texts = []
    for measure in measures:
        text = measure.text(of_way["measures"][measure.name]["mean"][0])
        difference = _difference(of_way, measure)
        texts.append(f"{text}; {difference}" if difference else text)
    return texts


def _difference(of_way: Report, measure: Measure) -> str:
    values = of_way["measures"][measure.name]["difference"]
    if values is None:
        return ""
    mean, low, high = (None if value is None else measure.text(value, signed=True) for value in values)
    return f"{mean}" if low is None or high is None else f"{mean} ({low} … {high})"


def goals(entry: Report) -> list[str]:
    """Return which goals are met on one network, a line each."""
    lines, measures, ways = [], _measures(entry), entry["ways"]
    hundred = ways[spell(Budgeted(masks=100))]
    for measure in measures:
        met = abs(hundred["measures"][measure.name]["difference"][0]) <= POINT
        text = f"100 masks, {measure.title} within one point of exact: {_difference(hundred, measure)}"
        lines.append(_goal(text, met=met))
    for count, goal in LIKENESS_GOALS.items():
        found = ways[spell(Budgeted(masks=count))][LIKENESS][0]
        lines.append(_goal(f"{count} masks, median ρ with exact at least {goal}: {found:.3f}", met=found >= goal))
    int8 = ways.get(f"{EXACT}, int8")
    if int8 is not None:
        median, _, worst = int8[LIKENESS]
        met = median >= INT8_GOALS[0] and worst >= INT8_GOALS[1]
        text = f"int8, every mask: ρ with exact at least {INT8_GOALS[0]} in the median, {INT8_GOALS[1]} at worst"
        lines.append(_goal(f"{text}: {median:.3f}, {worst:.3f}", met=met))
    for unit in ("forwards", "ms"):
        compared = ways_by(entry, unit)
        if any(way.cost is None for way in compared if is_ours(way.name)):
            continue
        words = "with fewer forward passes" if unit == "forwards" else "faster"
        better = {name: beat_all_presets(compared, name) for name in (*(m.name for m in measures), LIKENESS)}
        by_all = [name for name in better[LIKENESS] if all(name in of_measure for of_measure in better.values())]
        lines.append(_goal(f"nothing is {words} and better by all measures than every preset", met=not by_all))
        for measure in measures:
            found = ", ".join(better[measure.name]) or "nothing"
            lines.append(f"- {words} than every preset, and better by {measure.title} alone: {found}")
    return lines


def _goal(text: str, *, met: bool) -> str:
    return f"- {'**met**' if met else '**not met**'}: {text}"


def ways_by(entry: Report, unit: str) -> list[Way]:
    """Return the ways with their cost in `forwards` or `ms`."""
    exact, found = entry["ways"][EXACT], []
    for name in shown(entry):
        of_way = entry["ways"][name]
        quality = {LIKENESS: of_way[LIKENESS][0]}
        for measure in _measures(entry):
            difference = of_way["measures"][measure.name]["difference"]
            value = exact["measures"][measure.name]["mean"][0] + (0.0 if difference is None else difference[0])
            quality[measure.name] = value if measure.higher_is_better else -value
        taken = entry.get("times", {}).get(name)
        cost = of_way["forwards"] if unit == "forwards" else None if taken is None else taken["median"]
        found.append(Way(name=name, cost=cost, quality=quality))
    return found


def beat_all_presets(ways: Sequence[Way], measure: str) -> list[str]:
    """Return which ways are both cheaper and better by a measure than every preset of ours."""
    ours = [way for way in ways if is_ours(way.name)]
    return [way.name for way in ways if not is_ours(way.name) and all(_beats(way, preset, measure) for preset in ours)]


def frontier(ways: Sequence[Way], measure: str) -> list[Way]:
    """Return the ways than which none is both cheaper and better, the cheapest first."""
    best: list[Way] = []
    for way in sorted((way for way in ways if way.cost is not None), key=lambda way: (way.cost, -way.quality[measure])):
        if not best or way.quality[measure] > best[-1].quality[measure]:
            best.append(way)
    return best


def _beats(way: Way, other: Way, measure: str) -> bool:
    if way.cost is None or other.cost is None:
        return False
    return way.cost < other.cost and way.quality[measure] > other.quality[measure]


def _resnet50(found: Report) -> list[str]:
    if not found:
        return []
    ratio, torch, fast = found["ratio"], found["torch"], found["fast"]
    return [
        "## ResNet-50, time alone",
        "",
        f"Random weights, {found['masks']:,} masks of SISE, {found['rounds']} rounds in turn.",
        "",
        *heading("way", "ms, median (least … most)"),
        _row("exact SISE in torch eager, extrapolated", _range(torch)),
        _row("`fast` in int8", _range(fast)),
        "",
        _goal(
            f"`fast` in int8 at least {SPEED_GOAL} times as fast: {_range(ratio)}", met=ratio["median"] >= SPEED_GOAL
        ),
        "",
    ]


def _range(values: Mapping[str, float]) -> str:
    return f"{values['median']:,.0f} ({values['low']:,.0f} … {values['high']:,.0f})"


def _row(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"
