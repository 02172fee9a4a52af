"""The picture of benchmarks.budget: cost against every measure, for one network."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.budget_table import LIKENESS, Way, frontier, is_ours, ways_by

Report = dict[str, Any]

mpl.use("Agg")
_COLOURS = {"float32": "#c1272d", "int8": "#7b3294", "OpenVINO bfloat16": "#e08214"}
_PRESET_MARKS = {"ada-sise": "o", "ada-sise:preset=balanced": "s", "ada-sise:preset=fast": "^"}
_PRESET_NAMES = {"ada-sise": "exact", "ada-sise:preset=balanced": "balanced", "ada-sise:preset=fast": "fast"}
_OTHER_MARKS = "vDP*Xph<>d8"
_UNITS = {"forwards": "images through the whole network", "ms": "milliseconds"}


def draw(entry: Report, name: str, path: Path) -> None:
    """Draw cost, by images and by time where that was measured, against each measure; better is higher everywhere."""
    units = [unit for unit in _UNITS if unit == "forwards" or entry.get("times")]
    titles = {measure["name"]: measure for measure in entry["measures"]}
    figure = Figure(figsize=(15, 3.1 * len(units) + 1.2), layout="constrained")
    grid = figure.subplots(len(units), len(titles) + 1, squeeze=False)
    for unit, row in zip(units, grid, strict=True):
        ways = ways_by(entry, unit)
        for measure, axes in zip((*titles, LIKENESS), row, strict=True):
            _draw_one(axes, ways, measure)
            axes.set_xlabel(_UNITS[unit], fontsize=8)
            if measure == LIKENESS:
                axes.set_title("Spearman's ρ with exact, median", fontsize=9)
            else:
                better = "" if titles[measure]["higher_is_better"] else ", upside down"
                axes.set_title(f"{titles[measure]['title']} %{better}", fontsize=9)
                if better:
                    axes.yaxis.set_major_formatter(lambda value, _: f"{-value:g}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.suptitle(
        f"{name}: cheaper is left, better is up; the line joins the ways that none beats in both", fontsize=10
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=75)


def _draw_one(axes: Axes, ways: list[Way], measure: str) -> None:
    best = frontier(ways, measure)
    axes.plot([way.cost for way in best], [way.quality[measure] for way in best], color="#bbbbbb", zorder=1)
    others = [way for way in ways if not is_ours(way.name)]
    for way in ways:
        if way.cost is None:
            continue
        if is_ours(way.name):
            preset, _, precision = way.name.partition(", ")
            colour, mark = _COLOURS[precision or "float32"], _PRESET_MARKS[preset]
            label = f"{_PRESET_NAMES[preset]}, {precision or 'float32'}"
        else:
            colour, mark, label = "#31688e", _OTHER_MARKS[others.index(way) % len(_OTHER_MARKS)], way.name
        axes.scatter(way.cost, way.quality[measure], s=45, color=colour, marker=mark, label=label, zorder=2, alpha=0.85)
    axes.set_xscale("log")
    axes.grid(alpha=0.25, which="major")
    axes.tick_params(labelsize=8)
