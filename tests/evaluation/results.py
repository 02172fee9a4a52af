"""A results file written by hand: three photos, four pairs, three methods, two measures."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from engine.evaluation import Outcome, Pair, Store

EBPG = {
    "sise": [40.0, 60.0, 20.0, None],
    "ada-sise": [50.0, 60.0, 10.0, 80.0],
    "rise:masks=9": [45.0, None, None, None],
}
DROP = {"sise": [0.5, 0.25, 0.0, 0.25], "ada-sise": [0.5, 0.25, 0.25, 0.5], "rise:masks=9": [0.125, None, None, None]}
PAIRS = [("a.png", 0, "dog", 0.2), ("a.png", 1, "cat", 0.33), ("<b>.png", 0, "dog", 0.34), ("c.png", 0, "=dog", None)]


def write_results(path: Path) -> Store:
    """Write the file, and return it open: `rise` has one pair, and failed on another; a fourth photo was not read."""
    store = Store(path)
    settings = {"bundle": "b" * 64, "data set": "d" * 64, "threshold": "0.5", "activation": "sigmoid"}
    store.agree(settings, {"model": "tiny.ada", "form": "JSON list", "photos": "9", "left out": "bear (2)"})
    for name, title, unit, higher in (("ebpg", "EBPG", "%", True), ("drop", "Drop", "", False)):
        store.add_metric(name, {"title": title, "unit": unit, "higher_is_better": higher, "needs_boxes": True})
    for method in EBPG:
        store.add_method(method, {"name": method.partition(":")[0], "options": {"masks": "9"}})
    for photo in dict.fromkeys(photo for photo, *_ in PAIRS):
        pairs = [
            Pair(photo=photo, target=target, label=label, score=0.75, box_share=share, boxes=((0.25, 0.5, 0.75, 1.0),))
            for name, target, label, share in PAIRS
            if name == photo
        ]
        store.add_photo(photo, "ab" * 32, pairs)
    store.add_unread("d.png", "is damaged")
    store.add_thumbnail("a.png", grey_file(np.full((20, 40), 0.5), "jpeg"))
    for number, (photo, target, *_) in enumerate(PAIRS):
        for method in EBPG:
            key = Outcome(photo=photo, target=target, method=method, engine="1.0", milliseconds=10.0 * (number + 1))
            if method != "rise:masks=9" or number == 0:
                measures = {"ebpg": EBPG[method][number], "drop": DROP[method][number]}
                heatmap = grey_file(np.tile(np.linspace(0, 1, 8), (6, 1)), "png") if number == 0 else None
                evaluations = {"forward": number, "tapped": 1}
                store.add(replace(key, measures=measures, heatmap=heatmap, scored=number, evaluations=evaluations))
            elif number == 1:
                store.add(replace(key, milliseconds=None, error="no <memory>"))
    return store


def grey_file(values: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(file, kind)
    return file.getvalue()
