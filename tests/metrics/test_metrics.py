import re
from pathlib import Path

import pytest

from engine.errors import OptionError
from engine.metrics import METRICS, Drop, Explained, create_metrics, measure

NAMES = ["ebpg", "bbox", "pointing", "drop", "increase", "soft-drop", "soft-increase", "gain"]
NAMES += ["deletion", "insertion", "adcc", "stability", "randomisation"]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def test_the_registry_has_the_names_that_users_type() -> None:
    assert list(METRICS) == NAMES
    assert [metric.name for metric in METRICS.values()] == NAMES
    assert [name for name in NAMES if METRICS[name].needs_boxes] == ["ebpg", "bbox", "pointing"]
    lower = [name for name in NAMES if not METRICS[name].higher_is_better]
    assert lower == ["drop", "soft-drop", "deletion", "randomisation"]
    plain = [name for name in NAMES if METRICS[name].unit != "%"]
    assert plain == ["deletion", "insertion", "stability", "randomisation"]


def test_the_docs_list_every_measure() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \| ([↑↓]) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(name, arrow) for name, _, arrow in rows] == [
        (name, "↑" if metric.higher_is_better else "↓") for name, metric in METRICS.items()
    ]
    assert [title.strip() for _, title, _ in rows] == [metric.title for metric in METRICS.values()]


def test_measures_are_made_by_name(explained: Explained) -> None:
    metrics = create_metrics(["gain", "ebpg", "drop"])
    assert metrics == [METRICS["gain"], METRICS["ebpg"], METRICS["drop"]]
    assert list(measure(explained, metrics)) == ["gain", "ebpg", "drop"]
    assert measure(explained, []) == {}


def test_an_unknown_measure_lists_the_known_ones() -> None:
    text = f"metric is 'recall'; expected one of {', '.join(NAMES)}"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        create_metrics(["drop", "recall"])


def test_a_measure_that_is_asked_for_twice(explained: Explained) -> None:
    text = "metric 'drop' is asked for 2 times; expected each once"
    with pytest.raises(OptionError, match=f"^{re.escape(text)}$"):
        measure(explained, [Drop(), Drop(share=0.3)])
