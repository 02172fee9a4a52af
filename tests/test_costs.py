"""Running estimates of what work takes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from engine import costs as costs_module
from engine.costs import Costs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows what the list's only element says."""
    now = [100.0]
    monkeypatch.setattr(costs_module.time, "perf_counter", lambda: now[0])
    return now


@contextmanager
def under_way(costs: Costs, calls: int) -> Iterator[None]:
    """So many calls at the same time."""
    with ExitStack() as stack:
        for _ in range(calls):
            stack.enter_context(costs.call())
        yield


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


def test_work_that_was_done_several_times() -> None:
    costs = noted()
    costs.note("work", 8.0, 4)
    assert costs.usual("work") == 2.0


@pytest.mark.parametrize(("few", "many"), [(0, 1), (2, 2), (3, 4), (5, 8), (9, 16)])
def test_loads_have_measurements_of_their_own(few: int, many: int, clock: list[float]) -> None:
    costs = Costs()
    for calls in (1, few, few):
        with under_way(costs, calls):
            clock[0] += 3.0
            costs.note("work", 2.0)
    for calls in (few, many):
        with under_way(costs, calls):
            assert costs.high("work") == 2.5
    with under_way(costs, many + 1):
        assert costs.high("work") == 5.0
        for _ in range(62):
            costs.note("work", 100.0)
        assert (costs.usual("work"), costs.high("work")) == (100.0, 125.0)
        clock[0] += 200.0
    with under_way(costs, many):
        assert costs.high("work") == 2.5


def test_a_load_at_which_work_is_new_begins_with_guesses_by_the_next() -> None:
    costs = noted(2.0, 4.0, 6.0)
    with under_way(costs, 3):
        assert (costs.usual("work"), costs.high("work")) == (4.0, 20.0)
        costs.note("work", 9.0)
        assert (costs.usual("work"), costs.high("work")) == (9.0, 20.0)
    with under_way(costs, 2):  # by one call, not by three
        assert (costs.usual("work"), costs.high("work")) == (4.0, 10.0)
        assert (costs.usual("other"), costs.high("other")) == (None, None)


@pytest.mark.parametrize(("known", "guessed"), [([1, 2], (3.0, 6.0)), ([1, 5], (2.0, 8.0)), ([5, 9], (2.5, 5.0))])
def test_the_nearest_lower_load_tells_more_than_a_higher_one(
    known: list[int], guessed: tuple[float, float], clock: list[float]
) -> None:
    costs = noted()
    for calls in known:
        with under_way(costs, calls):
            clock[0] += 100.0
            for _ in range(5):
                costs.note("work", {1: 2.0, 2: 3.0, 5: 5.0, 9: 7.0}[calls])
    with under_way(costs, 3):
        assert (costs.usual("work"), costs.high("work")) == (min(guessed), 1.25 * max(guessed))


def test_one_call_after_several_when_there_was_none_alone(clock: list[float]) -> None:
    costs = Costs()
    with under_way(costs, 3):
        for seconds in (1e6, 3.0, 4.0, 8.0):
            costs.note("work", seconds)
    clock[0] += 1.0
    assert (costs.usual("work"), costs.high("work")) == (1.0, 5.0)


@pytest.mark.parametrize(("seconds", "times", "high"), [(4.0, 1, 5.0), (7.0, 1, 2.5), (7.0, 2, 2.5)])
def test_work_under_which_the_load_has_changed_belongs_to_the_highest(
    seconds: float, times: int, high: float, clock: list[float]
) -> None:
    costs = noted(2.0)
    with under_way(costs, 1):
        with under_way(costs, 1):
            clock[0] += 1.0
        clock[0] += 5.0
        costs.note("work", seconds, times)
        assert costs.high("work") == high


def test_what_is_not_tried_is_forgotten_at_its_load_alone() -> None:
    costs = noted(3.0, 80.0)
    with under_way(costs, 2):
        for highest in (7.5, 3.75, 3.75, 3.75, 3.75, 3.75, 3.75, 3.75):
            assert costs.high("work") == highest
            for _ in range(8):
                costs.refused("work")
        assert costs.usual("work") is None
    assert (costs.usual("work"), costs.high("work")) == (3.0, 100.0)
