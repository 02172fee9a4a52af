"""Several images at a time: their order, how far ahead they are taken, and that nothing is left at the end."""

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.errors import BackendError, CancelledError, ImageError
from engine.lanes import SharedLanes
from engine.pace import Cancel, Progress
from engine.stream import Stream

AHEAD = 3


class Explaining:
    """Gives ten times the image; an image that is held back waits until it is let go, or all is stopped."""

    def __init__(self, *held: int) -> None:
        self.gates = {image: threading.Event() for image in held}
        self.begun: list[int] = []
        self.stopped: list[int] = []

    def __call__(self, image: int, *, shared: SharedLanes, progress: Progress | None, cancel: Cancel) -> int:
        assert isinstance(shared, SharedLanes)
        self.begun.append(image)
        if progress is not None:
            progress(0, image)
            progress(image, image)
        while image in self.gates and not self.gates[image].wait(0.001):
            if cancel.is_set():
                self.stopped.append(image)
                raise CancelledError("stopped")
        if image < 0:
            raise ImageError(f"no image {image}")
        return 10 * image


def stream(
    images: Iterator[int] | list[int],
    explain: Explaining,
    *,
    ordered: bool = True,
    return_exceptions: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Iterator[object]:
    return iter(
        Stream(
            images,
            explain,
            8,
            ordered=ordered,
            return_exceptions=return_exceptions,
            progress=progress,
            cancel=cancel,
        )
    )


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-")] == []


def test_no_images() -> None:
    assert list(stream([], Explaining())) == []


def test_results_in_the_order_of_the_images() -> None:
    explain = Explaining(0)

    def let_go() -> None:
        while 2 not in explain.begun:
            time.sleep(0.001)
        explain.gates[0].set()

    last = threading.Thread(target=let_go)
    last.start()
    assert list(stream(list(range(8)), explain)) == [10 * image for image in range(8)]
    last.join()


def test_results_as_they_are_there() -> None:
    explain = Explaining(0)
    results = stream([0, 1, 2, 3], explain, ordered=False)
    found = [next(results) for _ in range(3)]
    assert sorted(found) == [(1, 10), (2, 20), (3, 30)]
    explain.gates[0].set()
    assert list(results) == [(0, 0)]


def test_images_are_taken_a_few_ahead() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for image in itertools.count():
            taken.append(image)
            yield image

    results = stream(endless(), Explaining())
    assert taken == []
    for number in range(5):
        assert next(results) == 10 * number
        assert number < len(taken) <= number + AHEAD
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 4 + AHEAD


def test_an_array_that_is_filled_anew_for_every_image() -> None:
    frame, three_taken = np.zeros(1, np.uint8), threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(5):
            frame[:] = number
            if number == 2:
                three_taken.set()
            yield frame

    def explain(image: NDArray[np.uint8], **_: object) -> int:
        assert three_taken.wait(20)
        return int(image[0])

    assert list(stream(camera(), explain)) == [0, 1, 2, 3, 4]


def test_an_image_that_cannot_be_explained_ends_it_in_its_turn() -> None:
    results = stream([1, 2, -3, 4, 5], Explaining())
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(ImageError, match=r"^image 2: no image -3$"):
        next(results)
    assert list(results) == []


def test_an_error_out_of_order_says_which_image_it_is_about() -> None:
    results = stream([1, -2], explain := Explaining(1), ordered=False)
    with pytest.raises(ImageError, match=r"^image 1: no image -2$"):
        next(results)
    assert explain.stopped == [1]


def test_errors_in_the_place_of_results() -> None:
    first, second, third = stream([1, -2, 3], Explaining(), return_exceptions=True)
    assert (first, third) == (10, 30)
    assert isinstance(second, ImageError)
    assert str(second) == "no image -2"


def test_a_bug_is_raised_whatever_is_asked_for() -> None:
    class Broken(Explaining):
        def __call__(self, *_image: int, **_how: object) -> int:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match=r"^a bug$"):
        list(stream([1], Broken(), return_exceptions=True))


def test_what_the_iterable_raises_reaches_the_caller() -> None:
    def images() -> Iterator[int]:
        yield 1
        raise OSError("the camera has gone")

    with pytest.raises(OSError, match=r"^the camera has gone$"):
        list(stream(images(), Explaining(1)))


@pytest.mark.parametrize("end", ["close", "forget", "raise"])
def test_to_leave_the_loop_ends_what_is_under_way(end: str) -> None:
    explain = Explaining(1, 2)
    results = stream([0, 1, 2, 3], explain)
    assert next(results) == 0
    if end == "close":
        results.close()  # type: ignore[attr-defined]
    elif end == "raise":
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    del results
    assert sorted(explain.stopped) == sorted(set(explain.begun) - {0})


def test_cancelling_while_the_caller_waits() -> None:
    flag, explain = threading.Event(), Explaining(0, 1, 2)
    threading.Timer(0.05, flag.set).start()
    with pytest.raises(CancelledError, match=r"^stopped$|^the explanation was cancelled by its caller; "):
        list(stream([0, 1, 2], explain, cancel=flag, return_exceptions=True))
    assert sorted(explain.stopped) == [0, 1, 2]


def test_progress_of_all_images_begun_so_far() -> None:
    told: list[tuple[int, int, str]] = []

    def progress(done: int, planned: int) -> None:
        told.append((done, planned, threading.current_thread().name))

    list(stream([5, 7, 9], Explaining(), progress=progress))
    assert {name for _, _, name in told} == {threading.current_thread().name}
    assert told[-1][:2] == (21, 21)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert all(done <= planned for done, planned, _ in told)


def test_progress_keeps_no_counts_of_images_that_are_done() -> None:
    told: list[tuple[int, int]] = []
    many = Stream(
        range(100),
        Explaining(),
        8,
        ordered=True,
        return_exceptions=False,
        progress=lambda done, planned: told.append((done, planned)),
        cancel=None,
    )
    for _ in many:
        assert len(many._told) <= AHEAD
    assert told[-1] == (4950, 4950)


def test_what_progress_raises_reaches_the_caller() -> None:
    def progress(_done: int, _planned: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match=r"^enough$"):
        list(stream([5, 7], Explaining(7), progress=progress))


def test_a_system_without_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    text = r"^no thread could be started for an image \(can't start new thread\); end threads of the program$"
    with pytest.raises(BackendError, match=text):
        list(stream([1], Explaining()))
