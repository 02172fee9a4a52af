"""Running estimates of what work takes."""

import pytest

from engine.costs import Costs


def noted(*seconds: float) -> Costs:
    """Estimates after a first measurement, which does not count, and these."""
    costs = Costs()
    for value in (1e6, *seconds):
        costs.note("work", value)
    return costs


def test_what_was_never_done_or_once() -> None:
    costs = Costs()
    costs.refused("work")
    assert (costs.usual("work"), costs.high("work")) == (None, None)
    assert (noted().usual("work"), noted().high("work")) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "usual", "high"),
    [
        ([4.0], 4.0, 5.0),
        ([2.0, 8.0], 2.0, 10.0),
        ([9.0, 1.0, 4.0], 4.0, 11.25),
        ([9.0] * 64 + [1.0] * 33, 1.0, 11.25),
        ([9.0] * 64 + [1.0] * 64, 1.0, 1.25),
    ],
)
def test_the_median_and_a_quarter_above_the_largest_of_the_last(
    seconds: list[float], usual: float, high: float
) -> None:
    costs = noted(*seconds)
    assert (costs.usual("work"), costs.high("work")) == (usual, high)


def test_kinds_of_work_are_apart() -> None:
    costs = noted(3.0)
    costs.note("other", 9.0)
    costs.note("other", 7.0)
    assert (costs.usual("work"), costs.usual("other")) == (3.0, 7.0)


def test_work_that_was_stopped_takes_at_least_so_long() -> None:
    costs = noted(2.0, 4.0, 6.0)
    costs.note_stopped("work", 3.0)  # says nothing: the median is 4
    assert costs.usual("work") == 4.0
    for _ in range(4):
        costs.note_stopped("work", 5.0)
    assert costs.usual("work") == 5.0


def test_of_what_is_not_tried_the_larger_half_is_forgotten() -> None:
    costs = noted(3.0, 80.0, 1.0, 2.0, 4.0)
    for highest in (100.0, 3.75, 2.5, 1.25, 1.25):  # of five, three, two and one
        assert costs.high("work") == highest
        for _ in range(7):
            costs.refused("work")
        assert costs.high("work") == highest
        costs.refused("work")
    assert costs.usual("work") == 1.0


def test_after_64_refusals_nothing_is_known() -> None:
    costs = noted(*[80.0] * 64)
    for _ in range(63):
        costs.refused("work")
    assert costs.usual("work") == 80.0
    costs.refused("work")
    assert costs.usual("work") is None
    costs.note("work", 2.0)
    assert costs.usual("work") == 2.0  # it has been done before, so that this one counts


def test_a_measurement_shows_that_it_is_tried() -> None:
    costs = noted(1.0, 80.0)
    for _ in range(9):
        for _ in range(7):
            costs.refused("work")
        costs.note("work", 2.0)
    assert costs.high("work") == 100.0
