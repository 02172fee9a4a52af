"""Threads that run a graph on rows of one image or of several."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.backends import Brake
from engine.costs import Costs
from engine.errors import BackendError, CancelledError, ImageError
from engine.job import Arrays, Floats, Job, Write
from engine.lanes import Lanes, SharedLanes, run_watched
from engine.pace import Cancel, Pace


class Numbers:
    """Rows of one number each, which begin with the one given."""

    shape = (1, 1, 1)

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._count = count

    def __len__(self) -> int:
        return self._count

    def writer(self) -> Write:
        def write(part: range, batch: Floats) -> None:
            batch[:, 0, 0, 0] = np.array(part) + self._first

        return write


class Doubling:
    """A graph that gives twice its first input, and its second as it is; it waits for a gate and notes its batches."""

    inputs = outputs = ()

    def __init__(self, runs_at_once: int = 1, gate: threading.Event | None = None) -> None:
        self.runs_at_once = runs_at_once
        self.batches: list[list[int]] = []
        self.stopped = 0
        self._gate = gate
        self._stop = threading.Event()

    def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> Arrays:
        self.batches.append([int(value) for value in cast(Floats, inputs[0]).ravel()])
        stop = threading.Event()
        with (brake or Brake()).on(stop.set):
            while self._gate is not None and not self._gate.wait(0.001):
                if stop.is_set():
                    self.stopped += 1
                    raise BackendError("stopped")
        return [2 * cast(Floats, inputs[0]).ravel(), *inputs[1:]]


def pace(ends: float | None = None, cancel: Cancel | None = None, told: list[int] | None = None) -> Pace:
    progress: Callable[[int, int], None] | None = None
    if told is not None:
        progress = lambda done, _: told.append(done)  # noqa: E731
    return Pace(ends=ends, costs=Costs(), row="row", first_s=1e-9, progress=progress, cancel=cancel)


class Kept:
    """What was kept of a job's rows."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def __call__(self, part: range, outputs: Arrays) -> None:
        self.values |= zip(part, outputs[0].tolist(), strict=True)


def job(first: int, count: int, kept: Callable[[range, Arrays], None], most: int = 100, of: Pace | None = None) -> Job:
    return Job(Numbers(first, count), count, most, of or pace(), kept)


@pytest.fixture
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()


def together(lanes: Lanes, jobs: Sequence[Job], gate: threading.Event) -> list[int | BaseException]:
    """Run jobs at the same time; return what each gave.

    The gate opens when a run has begun with the first, which is taken whole, and the others wait in this order.
    """
    found: list[int | BaseException] = [0] * len(jobs)

    def run(number: int) -> None:
        try:
            found[number] = lanes.run(jobs[number])
        except BaseException as err:
            found[number] = err

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for number, thread in enumerate(threads):
        thread.start()
        while jobs[number].taken == 0 if number == 0 else jobs[number] not in lanes._jobs:
            time.sleep(0.001)
    gate.set()
    for thread in threads:
        thread.join()
    return found


def wait_for_lanes(count: int) -> None:
    """Wait until there are so many threads of lanes."""
    ends = time.perf_counter() + 20
    while (there := sum(thread.name.startswith("engine-scoring") for thread in threading.enumerate())) != count:
        assert time.perf_counter() < ends, f"{there} threads"
        time.sleep(0.001)


@pytest.mark.usefixtures("no_thread_stays")
def test_rows_of_several_images_share_a_batch() -> None:
    gate = threading.Event()
    graph = Doubling(gate=gate)
    lanes = Lanes(graph, 1, 4)
    kept = [Kept() for _ in range(3)]
    jobs = [job(100, 2, kept[0]), job(200, 3, kept[1]), job(300, 6, kept[2])]
    assert together(lanes, jobs, gate) == [2, 3, 6]
    lanes.close()
    assert graph.batches == [[100, 101], [200, 201, 202, 300], [301, 302, 303, 304], [305]]
    assert kept[0].values == {0: 200.0, 1: 202.0}
    assert kept[1].values == {0: 400.0, 1: 402.0, 2: 404.0}
    assert kept[2].values == {number: 600.0 + 2 * number for number in range(6)}


@pytest.mark.usefixtures("no_thread_stays")
def test_the_other_inputs_of_a_shared_batch() -> None:
    gate, seen = threading.Event(), []
    graph = Doubling(gate=gate)
    lanes = Lanes(graph, 1, 4)

    def with_targets(first: int, count: int) -> Job:
        def keep(part: range, outputs: Arrays) -> None:
            seen.append((first + part.start, outputs[1].tolist()))

        rows = Numbers(first, count)
        return Job(rows, count, 100, pace(), keep, lambda part: [np.array([first + number for number in part]) * 10])

    together(lanes, [with_targets(1, 1), with_targets(2, 1), with_targets(3, 2)], gate)
    lanes.close()
    assert graph.batches == [[1], [2, 3, 4]]
    assert seen == [(1, [10]), (2, [20]), (3, [30, 40])]


@pytest.mark.usefixtures("no_thread_stays")
def test_a_job_may_want_fewer_rows_in_a_run_than_fit() -> None:
    gate = threading.Event()
    graph = Doubling(gate=gate)
    lanes = Lanes(graph, 1, 4)
    together(lanes, [job(1, 1, Kept()), job(10, 3, Kept(), most=1), job(20, 3, Kept())], gate)
    lanes.close()
    assert graph.batches == [[1], [10, 20, 21, 22], [11], [12]]


@pytest.mark.usefixtures("no_thread_stays")
def test_jobs_with_a_deadline_take_turns() -> None:
    gate = threading.Event()
    graph = Doubling(gate=gate)
    lanes = Lanes(graph, 1, 2)
    hurried = [job(10 * number, 4, Kept(), of=pace(ends=1e308)) for number in (1, 2)]
    assert together(lanes, [job(0, 1, Kept()), *hurried], gate) == [1, 4, 4]
    lanes.close()
    assert graph.batches == [[0], [10, 11], [20, 21], [12, 13], [22, 23]]


@pytest.mark.usefixtures("no_thread_stays")
def test_an_image_that_fails_leaves_the_others_alone() -> None:
    gate = threading.Event()
    graph = Doubling(gate=gate)
    lanes = Lanes(graph, 1, 4)

    def refuse(_part: range, _outputs: Arrays) -> None:
        raise ImageError("infinite")

    kept = Kept()
    found = together(lanes, [job(1, 1, Kept()), job(2, 9, refuse), job(20, 5, kept)], gate)
    lanes.close()
    assert found[0] == 1
    assert isinstance(found[1], ImageError)
    assert found[2] == 5
    assert len(kept.values) == 5


@pytest.mark.usefixtures("no_thread_stays")
def test_a_run_that_fails_fails_all_whose_rows_it_has() -> None:
    gate = threading.Event()

    class Failing(Doubling):
        def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> Arrays:
            outputs = super().run(inputs, brake)
            if len(self.batches) == 2:
                raise BackendError("the runtime failed")
            return outputs

    lanes = Lanes(Failing(gate=gate), 1, 2)
    found = together(lanes, [job(1, 1, Kept()), job(2, 1, Kept()), job(3, 1, Kept()), job(4, 2, Kept())], gate)
    lanes.close()
    assert [found[0], found[3]] == [1, 2]
    assert [str(failure) for failure in found[1:3]] == ["the runtime failed"] * 2


@pytest.mark.usefixtures("no_thread_stays")
def test_a_batch_takes_the_memory_of_the_rows_that_there_are() -> None:
    graph, kept = Doubling(), Kept()
    lanes = Lanes(graph, 1, 1 << 60)
    for count in (2, 5):
        assert lanes.run(job(7, count, kept, of=pace(ends=time.perf_counter() + 20))) == count
    lanes.close()
    assert kept.values == {0: 14.0, 1: 16.0, 2: 18.0, 3: 20.0, 4: 22.0}


@pytest.mark.usefixtures("no_thread_stays")
def test_a_batch_that_does_not_fit_in_memory() -> None:
    class Huge(Numbers):
        shape = (1 << 20, 1 << 20, 1 << 10)

    lanes = Lanes(Doubling(), 1, 4)
    text = (
        r"^a batch of 3 rows \[1048576, 1048576, 1024\] does not fit in memory; expected one that does: give a smaller "
        r"batch_size$"
    )
    with pytest.raises(BackendError, match=text):
        lanes.run(Job(Huge(0, 3), 3, 100, pace(ends=time.perf_counter() + 20), Kept()))
    assert lanes.run(job(7, 3, Kept())) == 3  # the thread is still there
    lanes.close()


@pytest.mark.usefixtures("no_thread_stays")
def test_threads_with_nothing_to_do_end_and_the_next_job_starts_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.lanes._IDLE_S", 0.01)
    lanes = Lanes(Doubling(), 2, 2)
    for _ in range(2):
        kept = Kept()
        assert lanes.run(job(7, 3, kept, of=pace(ends=time.perf_counter() + 20))) == 3
        assert kept.values == {0: 14.0, 1: 16.0, 2: 18.0}
        wait_for_lanes(0)
    lanes.close()


@pytest.mark.usefixtures("no_thread_stays")
def test_only_a_thread_that_has_ended_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, started = threading.Event(), list[str]()

    class Noted(threading.Thread):
        def start(self) -> None:
            super().start()
            started.append(self.name)

    monkeypatch.setattr("engine.lanes._IDLE_S", 0.01)
    monkeypatch.setattr("engine.lanes.Thread", Noted)
    lanes = Lanes(Doubling(gate=gate), 2, 2)
    jobs = [job(1, 1, Kept()), job(9, 9, Kept())]
    callers = [threading.Thread(target=lanes.run, args=(each,)) for each in jobs]
    callers[0].start()
    while len(started) < 2:
        time.sleep(0.001)
    wait_for_lanes(1)  # the other is in its run
    callers[1].start()
    while not jobs[1].taken:
        time.sleep(0.001)
    assert len(started) == 3
    assert set(started) == {"engine-scoring-0", "engine-scoring-1"}
    gate.set()
    for caller in callers:
        caller.join()
    lanes.close()


@pytest.mark.usefixtures("no_thread_stays")
def test_at_the_deadline_runs_are_stopped_and_what_is_there_counts() -> None:
    """The first lane's run never ends by itself, the second lane's runs do: what counts is unbroken from the first."""
    gate = threading.Event()

    class Stuck(Doubling):
        def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> Arrays:
            if cast(Floats, inputs[0]).ravel()[0] == 4:
                return super().run(inputs, brake)
            return [2 * cast(Floats, inputs[0]).ravel()]

    graph, kept = Stuck(gate=gate), Kept()
    lanes = Lanes(graph, 2, 2)
    late = Job(Numbers(0, 12), 12, 2, pace(ends=time.perf_counter() + 0.3), kept)
    assert lanes.run(late) == 4
    lanes.close()
    assert graph.stopped == 1
    assert sorted(kept.values) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


@pytest.mark.usefixtures("no_thread_stays")
def test_a_run_that_serves_another_image_is_not_stopped() -> None:
    """The first batch is of one image, the second of two, one of which is given up while it is computed."""
    gates = [threading.Event(), threading.Event()]

    class Gated(Doubling):
        def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> Arrays:
            self._gate = gates[len(self.batches)]
            return super().run(inputs, brake)

    graph, flag, kept = Gated(), threading.Event(), Kept()
    lanes = Lanes(graph, 1, 4)
    given_up = Kept()

    def give_up() -> None:
        while len(graph.batches) < 2:
            time.sleep(0.001)
        flag.set()
        while not jobs[1].left:
            time.sleep(0.001)
        gates[1].set()

    jobs = [job(0, 1, Kept()), job(10, 2, given_up, of=pace(cancel=flag)), job(20, 2, kept)]
    watcher = threading.Thread(target=give_up)
    watcher.start()
    found = together(lanes, jobs, gates[0])
    watcher.join()
    lanes.close()
    assert graph.batches == [[0], [10, 11, 20, 21]]
    assert (found[0], found[2], graph.stopped) == (1, 2, 0)
    assert isinstance(found[1], CancelledError)
    assert kept.values == {0: 40.0, 1: 42.0}
    assert given_up.values == {}


@pytest.mark.usefixtures("no_thread_stays")
def test_a_cancelled_job_stops_its_runs() -> None:
    gate, flag, told = threading.Event(), threading.Event(), list[int]()
    graph = Doubling(runs_at_once=2, gate=gate)
    lanes = Lanes(graph, 2, 2)
    threading.Timer(0.05, flag.set).start()
    with pytest.raises(CancelledError, match=r"^the explanation was cancelled by its caller; "):
        lanes.run(job(0, 9, Kept(), of=pace(cancel=flag, told=told)))
    lanes.close()
    assert graph.stopped == 2
    assert told == [0]


@pytest.mark.usefixtures("no_thread_stays")
def test_a_flag_that_was_set_for_a_moment() -> None:
    """Only a lane has seen it."""

    class Flickering:
        asked = 0

        def is_set(self) -> bool:
            if not threading.current_thread().name.startswith("engine-scoring"):
                return False
            self.asked += 1
            return self.asked == 2

    flag = Flickering()
    lanes = Lanes(Doubling(), 1, 2)
    with pytest.raises(CancelledError, match=r"^the explanation was cancelled by its caller; "):
        lanes.run(job(0, 9, Kept(), of=pace(cancel=flag)))
    lanes.close()
    assert flag.asked == 2


@pytest.mark.usefixtures("no_thread_stays")
def test_progress_that_finds_a_queue_empty() -> None:
    """Its error is not taken for the end of the time."""
    commands: SimpleQueue[str] = SimpleQueue()

    def progress(_done: int, _planned: int) -> None:
        commands.get_nowait()

    watched = Pace(ends=None, costs=Costs(), row="row", first_s=1e-9, progress=progress, cancel=None)
    lanes = Lanes(Doubling(), 1, 2)
    with pytest.raises(Empty):
        lanes.run(job(0, 9, Kept(), of=watched))
    lanes.close()


@pytest.mark.usefixtures("no_thread_stays")
def test_a_flag_that_fails() -> None:
    class Broken:
        def is_set(self) -> bool:
            if threading.current_thread().name.startswith("engine-scoring"):
                raise RuntimeError("the flag is broken")
            return False

    lanes = Lanes(Doubling(), 1, 2)
    with pytest.raises(RuntimeError, match=r"^the flag is broken$"):
        lanes.run(job(0, 9, Kept(), of=pace(cancel=Broken())))
    lanes.close()


CLOSED = (
    r"^the threads that run the network were stopped, since nobody waits for their results; explain the image again$"
)


@pytest.mark.usefixtures("no_thread_stays")
def test_closing_fails_what_is_not_done() -> None:
    gate = threading.Event()
    graph = Doubling(gate=gate)
    lanes = Lanes(graph, 1, 2)
    closer = threading.Timer(0.05, lanes.close)
    closer.start()
    with pytest.raises(BackendError, match=CLOSED):
        lanes.run(job(0, 9, Kept()))
    closer.join()
    with pytest.raises(BackendError, match=CLOSED):
        lanes.run(job(0, 9, Kept()))
    assert graph.stopped == 1


@pytest.mark.usefixtures("no_thread_stays")
def test_lanes_by_graph() -> None:
    shared = SharedLanes(8)
    one, other = Doubling(2), Doubling(16)
    assert shared.of(one) is shared.of(one) is not shared.of(other)
    assert (shared.of(one)._count, shared.of(one)._most) == (2, 4)
    assert (shared.of(other)._count, shared.of(other)._most) == (16, 1)
    shared.close()
    with pytest.raises(BackendError, match=CLOSED):
        shared.of(one)


def test_a_single_run_that_takes_too_long_is_stopped() -> None:
    gate = threading.Event()
    graph = Doubling(gate=gate)
    inputs = [np.array([3.0], np.float32)]
    with pytest.raises(Empty):
        run_watched(graph, inputs, time.perf_counter() + 0.03, None)
    flag = threading.Event()
    threading.Timer(0.03, flag.set).start()
    with pytest.raises(CancelledError):
        run_watched(graph, inputs, None, flag)
    gate.set()
    assert run_watched(graph, inputs, 1e308, threading.Event())[0].tolist() == [6.0]
    assert run_watched(graph, inputs, None, None)[0].tolist() == [6.0]


def test_a_single_run_that_fails() -> None:
    class Failing(Doubling):
        def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> Arrays:  # noqa: ARG002
            raise BackendError("the runtime failed")

    with pytest.raises(BackendError, match=r"^the runtime failed$"):
        run_watched(Failing(), [], 1e308, None)


def test_a_single_run_without_a_thread_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    text = r"^no thread could be started for a run \(can't start new thread\); end some threads of the program$"
    with pytest.raises(BackendError, match=text):
        run_watched(Doubling(), [], 1e308, None)


def test_a_brake_that_was_pulled_before_the_run() -> None:
    brake, stopped = Brake(), []
    brake.pull()
    with brake.on(lambda: stopped.append(1)):
        assert stopped == [1]
        brake.pull()
    assert stopped == [1, 1]
    brake.pull()  # nothing is under way
    assert stopped == [1, 1]
