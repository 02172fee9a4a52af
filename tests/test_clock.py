"""What took how long."""

import pytest

import engine
from engine import clock as timing


def test_phases_share_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 20.0, 21.0, 30.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    clock = timing.Clock()  # at 0
    with clock("gradient"), clock("open"):  # from 1, and from 3 to 6; the first ends at 10
        pass
    with clock("open"):  # from 20 to 21
        pass
    clock.stop()  # at 30
    assert clock.timings_ms == {"open": 4000.0, "gradient": 6000.0, "total": 30000.0}


def test_a_phase_that_an_error_ends_took_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    clock = timing.Clock()  # at 0
    with pytest.raises(engine.DeadlineError), clock("tap"), clock("open"):  # from 1, and from 3 to 6; ends at 10
        raise engine.DeadlineError("late")
    with clock("tap"):  # from 20 to 21, within no other phase
        pass
    assert clock.timings_ms == {"open": 3000.0, "tap": 7000.0}
    assert clock._within == []
