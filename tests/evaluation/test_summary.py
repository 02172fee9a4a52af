from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import OptionError
from engine.evaluation import Cost, Interval, Measure, Store, bootstrap_mean, summarise
from tests.evaluation.results import write_results

PERCENT = Measure(name="ebpg", title="EBPG", unit="%", higher_is_better=True)
NUMBER = Measure(name="drop", title="Drop", unit="", higher_is_better=False)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with write_results(tmp_path / "results.sqlite") as opened:
        yield opened


def test_means_by_hand(store: Store) -> None:
    summary = summarise(store)
    cells = {key: cell.interval for key, cell in summary.cells.items()}
    means = {key: (i.mean, i.pairs, i.photos) for key, i in cells.items() if i is not None}
    assert means["all", "sise", "ebpg"] == (40.0, 3, 2)
    assert means["all", "ada-sise", "ebpg"] == (50.0, 4, 3)
    assert means["all", "rise:masks=9", "ebpg"] == (45.0, 1, 1)
    assert means["all", "sise", "drop"] == (0.25, 4, 3)
    assert means["small boxes", "sise", "ebpg"] == (50.0, 2, 1)
    assert means["small boxes", "ada-sise", "drop"] == (0.375, 2, 1)
    assert means["large boxes", "ada-sise", "ebpg"] == (10.0, 1, 1)
    assert cells["large boxes", "rise:masks=9", "ebpg"] is None
    assert summary.pairs == {"all": 4, "small boxes": 2, "large boxes": 1}
    assert (summary.photos, summary.looked_at) == (3, 3)
    assert cells["all", "ada-sise", "ebpg"] == bootstrap_mean([10, 50, 60, 80], ["b", "a", "a", "c"])
    assert cells["large boxes", "ada-sise", "ebpg"].low is None


def test_differences_are_taken_pair_by_pair(store: Store) -> None:
    cells = summarise(store, "sise").cells
    found = cells["all", "ada-sise", "ebpg"].difference
    assert found == bootstrap_mean([-10.0, 10.0, 0.0], ["b", "a", "a"])
    assert (found.mean, found.pairs, found.photos) == (0.0, 3, 2)
    assert cells["all", "rise:masks=9", "drop"].difference == Interval(
        mean=-0.375, low=None, high=None, pairs=1, photos=1
    )
    assert cells["all", "sise", "ebpg"].difference is None
    assert all(cell.difference is None for cell in summarise(store).cells.values())


def test_costs_and_failures(store: Store) -> None:
    summary = summarise(store)
    assert summary.costs["sise"] == Cost(
        pairs=4, photos=3, failures=0, milliseconds=25.0, scored=1.5, evaluations={"forward": 1.5, "tapped": 1.0}
    )
    assert summary.costs["rise:masks=9"] == Cost(
        pairs=1, photos=1, failures=1, milliseconds=10.0, scored=0.0, evaluations={"forward": 0.0, "tapped": 1.0}
    )
    assert summary.failures == ("d.png: is damaged", "a.png, cat, rise:masks=9: no <memory>")
    assert summary.engines == ("1.0",)
    assert summary.methods["sise"] == {"masks": "9"}


def test_the_best_mean(store: Store) -> None:
    summary = summarise(store)
    assert summary.best("all", PERCENT) == 50.0
    assert summary.best("all", NUMBER) == 0.25  # not 0.125, which rise has on one of the four pairs
    assert summary.best("large boxes", PERCENT) == 20.0
    assert replace(summary, methods={"sise": {}}).best("all", PERCENT) is None


def test_headings_say_over_how_many_pairs(store: Store) -> None:
    summary = summarise(store)
    assert summary.explained["all", "rise:masks=9"] == 1
    assert summary.heading("all", "sise") == "sise"
    assert summary.heading("all", "rise:masks=9") == "rise:masks=9 (1 of 4 pairs)"
    assert summary.heading("large boxes", "rise:masks=9") == "rise:masks=9 (0 of 1 pair)"


def test_an_unknown_reference(store: Store) -> None:
    with pytest.raises(OptionError, match=r"^reference is 'size'; expected one of the methods, sise, ada-sise, rise"):
        summarise(store, "size")


def test_a_file_that_was_just_begun(tmp_path: Path) -> None:
    with Store(tmp_path / "results.sqlite") as store:
        summary = summarise(store)
    assert (summary.cells, summary.costs, summary.pairs["all"]) == ({}, {}, 0)


def test_how_values_are_written() -> None:
    interval = Interval(mean=0.0, low=-0.04, high=12.345, pairs=2, photos=2)
    assert (PERCENT.heading, NUMBER.heading) == ("EBPG ↑ %", "Drop ↓")
    assert (PERCENT.text(12.345), PERCENT.text(12.345, signed=True), NUMBER.text(0.5)) == ("12.3", "+12.3", "0.500")
    assert PERCENT.range_text(interval) == "0.0 … 12.3"
    assert NUMBER.range_text(interval, signed=True) == "-0.040 … +12.345"
    assert PERCENT.range_text(replace(interval, low=None)) == ""
