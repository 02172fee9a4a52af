"""Several images at a time: each is explained in a thread of its own, as many as keep the network busy."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from typing import Generic, Protocol, TypeVar

import numpy as np

from engine.decode import is_photo_source
from engine.errors import BackendError, CancelledError, EngineError, OptionError
from engine.image import Photo
from engine.lanes import SharedLanes
from engine.pace import Cancel, Progress, wait

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


_AHEAD = 3  # one image is prepared and tapped, one scored, one put together


def expect_several(images: object) -> None:
    """Check that images can be taken from an object, which is no single photo.

    Raises:
        OptionError: It is one photo, or nothing that Python iterates over.
    """
    if is_photo_source(images) or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise OptionError(
            f"images is of type {type(images).__name__}; expected several photos, such as a list; put one photo into a "
            "list: [photo]"
        )


class Explain(Protocol[Result_co]):
    """Explains one image."""

    def __call__(self, image: Photo, *, shared: SharedLanes, progress: Progress | None, cancel: Cancel) -> Result_co:
        """Explain an image.

        Args:
            image: The image.
            shared: Where its masks are scored with those of others.
            progress: To be told how far it is.
            cancel: To be asked whether to stop.

        Raises:
            EngineError: It cannot be explained.
        """
        ...


class Stream(Generic[Result]):
    """Explains images, several at a time.

    They are taken from the iterable in the caller's thread, when fewer are begun than may be and no result is ready.
    However the iteration ends, also when its iterator is closed or forgotten, no thread is left. An array may be filled
    anew when the next image is asked for.

    Args:
        images: May be endless.
        explain: Called in several threads.
        batch_size: Changed images that are scored at a time.
        ordered: Whether results come in the order of the images, or each as soon as it is there.
        return_exceptions: Whether an image's error takes the place of its result, or is raised.
        progress: Called in the caller's thread with the masks scored and planned of all images begun so far.
        cancel: Asked now and then whether to stop.
    """

    def __init__(
        self,
        images: Iterable[Photo],
        explain: Explain[Result],
        batch_size: int,
        *,
        ordered: bool,
        return_exceptions: bool,
        progress: Progress | None,
        cancel: Cancel | None,
    ) -> None:
        self._images = images
        self._explain = explain
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._progress = progress
        self._cancel = cancel
        self._shared = SharedLanes(batch_size)
        self._stopped = Event()
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()  # what to do in the caller's thread
        self._threads: dict[int, Thread] = {}
        self._ready: dict[int, Result | EngineError] = {}
        self._told: dict[int, tuple[int, int]] = {}  # masks scored and planned of images under way
        self._past = 0, 0  # of the others together

    def is_set(self) -> bool:
        """Tell the images under way whether to stop."""
        return self._stopped.is_set() or (self._cancel is not None and self._cancel.is_set())

    def __iter__(self) -> Iterator[Result | EngineError | tuple[int, Result | EngineError]]:
        """Yield the results; in pairs with the numbers of their images, from 0, if they are not ordered.

        Raises:
            EngineError: An image cannot be explained; its number comes first in the message.
            CancelledError: The flag is set.
            BackendError: The system has no more threads.
        """
        source, exhausted, expected = enumerate(self._images), False, 0
        try:
            while True:
                while not self._news.empty():
                    self._news.get()()
                number = expected if self._ordered else next(iter(self._ready), expected)
                if number in self._ready:
                    expected += 1
                    result = self._ready.pop(number)
                    if isinstance(result, EngineError) and not self._return_exceptions:
                        raise type(result)(f"image {number}: {result}") from result
                    yield result if self._ordered else (number, result)
                elif not exhausted and len(self._threads) + len(self._ready) < _AHEAD:
                    following = next(source, None)
                    exhausted = following is None
                    if following is not None:
                        self._begin(*following)
                elif self._threads:
                    wait(self._news, None, self._cancel)()
                else:
                    return
        finally:
            self._stopped.set()
            self._shared.close()
            for thread in self._threads.values():
                thread.join()

    def _begin(self, number: int, image: Photo) -> None:
        own = image.copy() if isinstance(image, np.ndarray) else image

        def tell(done: int, planned: int) -> None:
            self._news.put(partial(self._tell, number, done, planned))

        progress = None if self._progress is None else tell

        def work() -> None:
            try:
                result = self._explain(own, shared=self._shared, progress=progress, cancel=self)
                self._news.put(partial(self._end, number, result))
            except BaseException as err:
                self._news.put(partial(self._fail, number, err))

        thread = Thread(target=work, name=f"engine-image-{number}")
        try:
            thread.start()
        except RuntimeError as err:
            raise BackendError(f"no thread could be started for an image ({err}); end threads of the program") from err
        self._threads[number] = thread

    def _end(self, number: int, result: Result | EngineError) -> None:
        self._threads.pop(number).join()
        self._ready[number] = result
        done, planned = self._told.pop(number, (0, 0))
        self._past = self._past[0] + done, self._past[1] + planned

    def _fail(self, number: int, failure: BaseException) -> None:
        if isinstance(failure, CancelledError) or not isinstance(failure, EngineError):
            raise failure
        self._end(number, failure)

    def _tell(self, number: int, done: int, planned: int) -> None:
        assert self._progress is not None
        self._told[number] = done, planned
        self._progress(*(sum(counts) for counts in zip(self._past, *self._told.values(), strict=True)))
