"""How far scoring may go; the clock is the test's own."""

import threading
from queue import Empty, SimpleQueue

import pytest

from engine import pace
from engine.costs import Costs
from engine.errors import CancelledError
from engine.pace import Cancel, Pace, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows what the list's only element says."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def pace_until(
    ends: float | None,
    first_s: float = 1.0,
    costs: Costs | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Pace:
    return Pace(
        ends=ends, costs=costs or Costs(), row="row of forward", first_s=first_s, progress=progress, cancel=cancel
    )


def test_without_a_deadline_there_is_room_for_all() -> None:
    free = pace_until(None, 1e9)
    assert [free.room(0, 7), free.room(5, 7), free.room(7, 7), free.room(0, 0)] == [7, 2, 0, 0]


def test_a_run_has_half_of_what_fits(clock: list[float]) -> None:
    hurried = pace_until(101.0, 0.125)
    assert hurried.room(0, 50) == 4  # 1 s at 0.125 s a row, as estimated at first
    clock[0] += 0.5
    hurried.measured(4, 9.0)  # the first says nothing
    hurried.measured(4, 0.25)
    assert hurried.room(4, 50) == 4  # 0.5 s at 0.0625 s, as measured
    assert hurried.room(46, 50) == 4  # all four, for twice as many would fit
    assert hurried.room(45, 50) == 4
    clock[0] += 0.25
    assert hurried.room(8, 50) == 2
    clock[0] += 0.125
    assert hurried.room(10, 50) == 1
    clock[0] += 0.0625
    assert hurried.room(11, 50) == 1  # one fits just so
    clock[0] += 0.015625
    assert hurried.room(12, 50) == 0
    clock[0] += 1.0
    assert [hurried.room(12, 50), hurried.room(50, 50)] == [0, 0]


def test_a_late_start_leaves_nothing(clock: list[float]) -> None:
    assert pace_until(clock[0] - 10).room(0, 50) == 0
    assert pace_until(clock[0] - 10).room(0, 0) == 0


def test_a_pace_that_lets_nothing_through_is_forgotten(clock: list[float]) -> None:
    costs = Costs()
    for _ in range(65):
        costs.note("row of forward", 8.0)
    rooms = [pace_until(clock[0] + 4.0, 1.0, costs).room(0, 50) for _ in range(65)]
    assert rooms == [0] * 64 + [2]  # the estimate from before the first run


def test_a_pace_that_ends_a_job_is_not_forgotten(clock: list[float]) -> None:
    costs = Costs()
    for _ in range(65):
        costs.note("row of forward", 8.0)
    assert [pace_until(clock[0] + 4.0, 1.0, costs).room(1, 50) for _ in range(65)] == [0] * 65
    assert [pace_until(clock[0] + 4.0, 1.0, costs).room(0, 0) for _ in range(65)] == [0] * 65
    assert costs.usual("row of forward") == 8.0


def test_estimates_outlive_a_call(clock: list[float]) -> None:
    costs = Costs()
    for seconds in (9.0, 1.0):
        pace_until(None, costs=costs).measured(4, seconds)
    assert pace_until(clock[0] + 4.0, first_s=100.0, costs=costs).room(0, 50) == 8
    assert costs.usual("row of forward") == 0.25


@pytest.mark.parametrize("ends", [1e308, -1e308])
def test_deadlines_beyond_all_bounds(ends: float) -> None:
    pace = pace_until(ends, 1e-9)
    assert [pace.room(0, 7), pace.room(5, 7)] == ([7, 2] if ends > 0 else [0, 0])


def test_progress_and_a_flag_that_ends_it() -> None:
    flag, told = threading.Event(), []
    watched = pace_until(None, progress=lambda done, planned: told.append((done, planned)), cancel=flag)
    watched.report(0, 6)
    flag.set()
    text = r"^the explanation was cancelled by its caller; nothing was computed to the end$"
    with pytest.raises(CancelledError, match=text):
        watched.report(4, 6)
    assert told == [(0, 6), (4, 6)]
    with pytest.raises(CancelledError, match=text):
        watched.room(4, 6)


def test_waiting_for_news() -> None:
    news: SimpleQueue[int] = SimpleQueue()
    news.put(3)
    assert pace_until(-1e308).wait(news) == 3  # what is there is given, however late
    with pytest.raises(Empty):
        pace_until(-1e308).wait(news)
    with pytest.raises(Empty):
        pace_until(-1e308, cancel=threading.Event()).wait(news)
    threading.Timer(0.05, news.put, [4]).start()
    assert pace_until(1e308).wait(news) == 4
    threading.Timer(0.05, news.put, [5]).start()
    assert pace_until(None, cancel=threading.Event()).wait(news) == 5


def test_a_flag_that_is_set_while_nothing_happens() -> None:
    flag = threading.Event()
    threading.Timer(0.05, flag.set).start()
    with pytest.raises(CancelledError, match=r"^the explanation was cancelled by its caller; "):
        pace_until(None, cancel=flag).wait(SimpleQueue())
