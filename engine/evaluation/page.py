"""The report as one page of HTML that needs no network, no script and no other file."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw

from engine.errors import printable
from engine.evaluation.bootstrap import Interval
from engine.evaluation.sample import Box
from engine.evaluation.store import Outcome, Pair, Store
from engine.evaluation.summary import Measure, Summary
from engine.picture import overlay

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #212529; margin: 2rem auto; max-width: 80rem; padding: 0 1rem }
h2 { margin-top: 2.5rem } h3 { margin-bottom: .3rem; font-weight: 600 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #dee2e6 }
th:first-child, td:first-child { text-align: left }
small, .note { color: #636b74 } td small { display: block; font-size: 12px }
.best { font-weight: 700 }
.row { display: flex; gap: 12px; overflow-x: auto; padding-bottom: .6rem }
figure { margin: 0; flex: none; width: 224px } figure img { width: 224px; display: block }
figcaption { font-size: 13px; overflow-wrap: anywhere } .failed { color: #945200 }
"""
_NONE = "–"


def page(store: Store, summary: Summary, intervals: str) -> str:
    """Return the report.

    Args:
        store: The results, for the gallery.
        summary: What they say.
        intervals: How the intervals were made, in words.

    Raises:
        OptionError: The store cannot be read.
    """
    settings = summary.settings
    body = [
        f"<h1>Explanation methods on {escape(settings['model'])}</h1>",
        f"<p>{_facts(summary)}</p>",
        f'<p class="note">Means with intervals: {escape(intervals)}. Bold: the best mean of a column. '
        "↑ more is better, ↓ less is better.</p>",
        *(part for subset in summary.pairs for part in _quality(summary, subset)),
        "<h2>Cost</h2>",
        _costs(summary),
        *_gallery(store, summary),
        *_failures(summary.failures),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Explanation methods</title>\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width"><style>' + _STYLE + "</style></head>\n<body>\n"
    ) + "\n".join([*body, "</body></html>\n"])


def _facts(summary: Summary) -> str:
    settings = summary.settings
    facts = [
        f"{settings['form']}, {settings['photos']} photos, of which {summary.looked_at} were looked at",
        f"{summary.pairs['all']} pairs of a photo and a class on {summary.photos} photos, each with a score of at "
        f"least {settings['threshold']} ({settings['activation']})",
        f"bundle {settings['bundle'][:12]}…, data set {settings['data set'][:12]}…",
        f"engine {', '.join(summary.engines) or _NONE}",
    ]
    if settings["left out"]:
        facts.append(f"classes that the model does not have, left out (with their photos): {settings['left out']}")
    return ".<br>".join(map(escape, facts)) + "."


def _quality(summary: Summary, subset: str) -> list[str]:
    """Return the tables of one subset: the measures, and the differences from the reference."""
    if not summary.pairs[subset] or not summary.measures:
        return []
    parts = [f"<h2>Quality: {escape(subset)}, {summary.counted(subset)}</h2>"]
    cells = {(key[1], key[2]): cell for key, cell in summary.cells.items() if key[0] == subset}
    means = {key: cell.interval for key, cell in cells.items()}
    best = [summary.best(subset, measure) for measure in summary.measures]
    parts.append(_table(summary, subset, summary.methods, means, best))
    if summary.reference is not None:
        others = [method for method in summary.methods if method != summary.reference]
        differences = {key: cell.difference for key, cell in cells.items()}
        parts.append(f"<h3>Difference from {escape(summary.reference)}, on the pairs that both have</h3>")
        parts.append(_table(summary, subset, others, differences, ()))
    return parts


def _table(
    summary: Summary,
    subset: str,
    methods: Iterable[str],
    cells: Mapping[tuple[str, str], Interval | None],
    best: Sequence[float | None],
) -> str:
    """Return a table of methods by measures; without best means it is one of differences."""
    rows = []
    for method in methods:
        row = [escape(summary.heading(subset, method))]
        for number, measure in enumerate(summary.measures):
            interval = cells[method, measure.name]
            if interval is None:
                row.append(_NONE)
                continue
            signed = not best
            mean = measure.text(interval.mean, signed=signed)
            if best and interval.mean == best[number]:
                mean = f'<span class="best">{mean}</span>'
            row.append(f"{mean}<small>{measure.range_text(interval, signed=signed)}</small>")
        rows.append(row)
    return _rows_of(["method", *(escape(measure.heading) for measure in summary.measures)], rows)


def _costs(summary: Summary) -> str:
    """Return the table of what each method took."""
    graphs = list(dict.fromkeys(graph for cost in summary.costs.values() for graph in cost.evaluations))
    rows = []
    for method, cost in summary.costs.items():
        time = _NONE if cost.milliseconds is None else f"{cost.milliseconds:,.0f}"
        images = [f"{cost.evaluations.get(graph, 0):,.1f}" for graph in graphs]
        rows.append([escape(method), str(cost.pairs), str(cost.photos), str(cost.failures), time, *images])
    head = [
        "method",
        "pairs",
        "photos",
        "failed",
        "ms, median",
        *(f"images through {escape(graph)}" for graph in graphs),
    ]
    return _rows_of(head, rows)


def _rows_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _gallery(store: Store, summary: Summary) -> list[str]:
    """Return a row of pictures for each pair whose heatmaps were kept."""
    heatmaps, thumbnails = store.heatmaps(), store.thumbnails()
    outcomes = {(outcome.photo, outcome.target, outcome.method): outcome for outcome in store.outcomes()}
    parts = []
    for pair in store.pairs():
        keys = [(pair.photo, pair.target, method) for method in summary.methods]
        shown = [(outcomes[key], heatmaps[key]) for key in keys if key in heatmaps]
        if shown:
            photo = Image.open(io.BytesIO(thumbnails[pair.photo]))
            parts.append(f"<h3>{escape(pair.label)}, score {pair.score:.3f} <small>{escape(pair.photo)}</small></h3>")
            parts.append(f'<div class="row">{_figures(pair, photo, shown, summary.measures)}</div>')
    return ["<h2>Gallery</h2>", *parts] if parts else []


def _figures(
    pair: Pair, photo: Image.Image, shown: Iterable[tuple[Outcome, bytes]], measures: Sequence[Measure]
) -> str:
    figures = [_figure(gallery_picture(photo, None, pair.boxes), "what the network saw", "")]
    for outcome, heatmap in shown:
        values = [(measure, outcome.measures.get(measure.name)) for measure in measures]
        words = " · ".join(f"{measure.title} {measure.text(value)}" for measure, value in values if value is not None)
        figures.append(_figure(gallery_picture(photo, heatmap, pair.boxes), outcome.method, words))
    return "".join(figures)


def gallery_picture(photo: Image.Image, heatmap: bytes | None, boxes: Sequence[Box]) -> Image.Image:
    """Draw a photo, or a heatmap over it, and the boxes of the class.

    Args:
        photo: What the network saw.
        heatmap: A picture of grey values, or None.
        boxes: Left, top, right and bottom as shares of width and height.
    """
    drawn = photo.convert("RGB")
    if heatmap is not None:
        grey = np.asarray(Image.open(io.BytesIO(heatmap)), np.float32) / np.float32(255)
        drawn = overlay(grey, drawn)
    pen = ImageDraw.Draw(drawn)
    for left, top, right, bottom in boxes:
        x1, x2 = (round(share * (drawn.width - 1)) for share in (left, right))
        y1, y2 = (round(share * (drawn.height - 1)) for share in (top, bottom))
        pen.rectangle((x1, y1, x2, y2), outline="black", width=3)  # white on black is seen on any photo
        pen.rectangle((min(x1 + 1, x2), min(y1 + 1, y2), max(x1, x2 - 1), max(y1, y2 - 1)), outline="white")
    return drawn


def _figure(picture: Image.Image, title: str, words: str) -> str:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=90)  # a PNG of a photo is six times as large
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(title)}<br><small>{escape(words)}</small></figcaption></figure>"
    )


def _failures(failures: Sequence[str]) -> list[str]:
    if not failures:
        return []
    entries = "".join(f"<li>{escape(printable(failure))}</li>" for failure in failures)
    return [f"<h2>Not explained: {len(failures)}</h2>", f'<ul class="failed">{entries}</ul>']
