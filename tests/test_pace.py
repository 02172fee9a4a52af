"""How far scoring may go; the clock is the test's own."""

import threading

import pytest

from engine import pace
from engine.errors import CancelledError
from engine.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows what the list's only element says."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def test_without_a_deadline_there_is_room_for_all() -> None:
    free = Pace(ends=None, mask_s=1e9, progress=None, cancel=None)
    assert [free.room(0, 7), free.room(5, 7), free.room(7, 7), free.room(0, 0)] == [7, 2, 0, 0]


def test_a_deadline_leaves_room_for_what_fits(clock: list[float]) -> None:
    hurried = Pace(ends=101.0, mask_s=0.3, progress=None, cancel=None)
    assert hurried.room(0, 50) == 3  # 1 s at 0.3 s a mask, as estimated
    clock[0] += 0.375
    hurried.measured(3, 0.375)
    assert hurried.room(3, 50) == 5  # 0.625 s at 0.125 s, as measured
    assert hurried.room(3, 5) == 2
    clock[0] += 1.0
    assert hurried.room(8, 50) == 0
    assert hurried.room(8, 8) == 0


def test_one_mask_at_least_is_scored(clock: list[float]) -> None:
    late = Pace(ends=90.0, mask_s=0.1, progress=None, cancel=None)
    assert late.room(0, 50) == 1
    clock[0] += 0.1
    assert late.room(1, 50) == 0
    assert Pace(ends=90.0, mask_s=0.1, progress=None, cancel=None).room(0, 0) == 0


@pytest.mark.parametrize("ends", [1e308, -1e308])
def test_deadlines_beyond_all_bounds(ends: float) -> None:
    pace = Pace(ends=ends, mask_s=1e-9, progress=None, cancel=None)
    assert [pace.room(0, 7), pace.room(5, 7)] == ([7, 2] if ends > 0 else [1, 0])


def test_progress_and_a_flag_that_ends_it() -> None:
    flag, told = threading.Event(), []
    watched = Pace(ends=None, mask_s=1.0, progress=lambda done, planned: told.append((done, planned)), cancel=flag)
    watched.report(0, 6)
    flag.set()
    with pytest.raises(
        CancelledError, match=r"^the explanation was cancelled by its caller; nothing was computed to the end$"
    ):
        watched.report(4, 6)
    assert told == [(0, 6), (4, 6)]
    assert watched.room(4, 6) == 0
