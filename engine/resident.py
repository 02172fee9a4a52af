"""A bundle's graphs on a GPU, with all that they take and give in its memory: from the image to the heatmap."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engine.backends import Gpu
from engine.backends.threads import expect_same_process
from engine.bundle import Bundle
from engine.contract import expect_forward, expect_tapped
from engine.errors import DeviceMemoryError, ImageError
from engine.kernels.device import Array, DeviceImage, Mark
from engine.kernels.launch import Kernels, Ranges, Table
from engine.pace import Pace
from engine.scoring import expect_finite, finite
from engine.tuning import Setup

CLASSES_AT_ONCE = 8  # bounds the memory of the backward pass
USUAL_BATCH_SIZE = 64
BATCH_SIZES = (16, 32, 64, 128, 256)
"""Those that are tried."""
_KEPT = 2  # batches of different sizes
_AHEAD = 2  # batches that wait while the caller hears of those before them
_SWEEP_S = 10.0
_SLOT_MS = 300.0
_DIFFERENT = 16  # images in a batch that is timed

Floats = NDArray[np.float32]


class Resident:
    """The tapped pass, the scoring loop and the kernels of one bundle on a GPU. One image at a time: see `turn`.

    Args:
        bundle: The compiled model.
        gpu: Where.
        precision: In what masks are scored; the tapped pass is float32.
        batch_size: Masked images that are scored at a time. Where they do not fit into the memory, half of it is taken,
            and so on.

    Raises:
        BundleError: A graph has other inputs or outputs than the manifest says.
        BackendError: The runtime refused a graph.
        DeviceMemoryError: Not even one masked image fits into the memory.

    Attributes:
        device: The memory.
        kernels: The arithmetic.
        batch_size: Masked images that are scored at a time.
        asked_batch_size: What was asked for.
    """

    def __init__(self, bundle: Bundle, gpu: Gpu, precision: str, batch_size: int) -> None:
        self.device = gpu.memory
        self.batch_size = self.asked_batch_size = batch_size
        self._gpu = gpu
        self._classes = bundle.classes
        self._shape = bundle.image_shape
        self._lock, self._process = Lock(), os.getpid()
        empty = self.device.empty
        self.device.free_unused()  # what a sweep over batch sizes has left
        self._tapped = gpu.open(bundle.tapped)
        expect_tapped(bundle, self._tapped)
        self._forward = gpu.open(bundle.forward, precision=precision, many_runs=True)
        self._element = gpu.element(precision)
        images = np.dtype(self._element).name
        expect_forward(bundle, self._forward, images=images)
        self._image, self._targets = empty((1, *self._shape), np.float32), empty((CLASSES_AT_ONCE,), np.int64)
        self._logits, self._indices = empty((1, self._classes), np.float32), empty((CLASSES_AT_ONCE,), np.int64)
        self._maps = [empty((own.channels, own.height, own.width), np.float32) for own in bundle.layers]
        self._averages = [empty((CLASSES_AT_ONCE, own.channels), np.float32) for own in bundle.layers]
        self._taps: dict[int, Callable[[], None]] = {}
        self._batches: dict[int, tuple[Array, Array, Callable[[], None]]] = {}
        self._contrast: Array = None
        self._baseline: Array = None
        self.kernels = Kernels(self.device, self._maps, self._averages, self._shape, images)
        self.kernels.compile()
        self.device.clear(self._image)
        self.tap([0])
        self._make_batch()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the memory for one image, within a `with` block.

        Raises:
            BackendError: The process was forked from the one that has the GPU's context.
        """
        expect_same_process(self._gpu.name, self._process, "load the bundle in each process")
        with self._lock:
            yield

    def resize(self, batch_size: int) -> None:
        """Score so many masked images at a time from now on."""
        if batch_size != self.asked_batch_size:
            self.batch_size = self.asked_batch_size = batch_size
            self._make_batch()

    def warnings(self) -> list[str]:
        """Return what the reader of a result should know."""
        if self.batch_size == self.asked_batch_size:
            return []
        return [f"out of device memory: batches of {self.batch_size} were scored, not of {self.asked_batch_size}"]

    def begin(self, image: Floats | DeviceImage, baseline: Floats | None) -> None:
        """Take up an image.

        Args:
            image: float32 [1, C, H, W], or one on the device.
            baseline: What masked-out pixels become, float32 [C, H, W], or None for zeros.

        Raises:
            ImageError: It is not on the device, or of another shape or type.
        """
        self.device.copy(
            self._image, self._adopt(image) if isinstance(image, DeviceImage) else self.device.upload(image)
        )
        self._baseline = None if baseline is None else self.device.upload(baseline)
        self._contrast = self._image if baseline is None else self.kernels.difference(self._image, self._baseline)
        self.kernels.begin()

    def _adopt(self, image: DeviceImage) -> Array:
        shape, given = (1, *self._shape), self.device.adopt(image.source)
        if tuple(given.shape) not in (shape, shape[1:]) or np.dtype(given.dtype).kind != "f":
            raise ImageError(
                f"the image is {given.dtype} {list(given.shape)}; expected floats {list(shape)}: the network's input, "
                "prepared as the bundle says"
            )
        self.device.come_after(image.stream)
        return given.reshape(shape)

    def tap(self, targets: Sequence[int]) -> None:
        """Run the tapped pass for at most `CLASSES_AT_ONCE` classes: maps and average gradients are then there."""
        count = len(targets)
        self.device.copy(self._targets, self.device.upload(np.resize(np.array(targets, np.int64), CLASSES_AT_ONCE)))
        if count not in self._taps:
            outputs = [
                (self._logits, (1, self._classes)),
                (self._indices, (count,)),
                *((own, (1, *own.shape)) for own in self._maps),
                *((own, (count, own.shape[1])) for own in self._averages),
            ]
            inputs = [(self._image, (1, *self._shape)), (self._targets, (count,))]
            self._taps[count] = self._tapped.bind(inputs, outputs)
        self._taps[count]()

    def read(self, count: int) -> tuple[Floats, list[int]]:
        """Return the logits, float32 [1, classes], and the classes that the tapped pass has explained.

        Args:
            count: How many classes.

        Raises:
            ImageError: The network computed NaN or infinity.
        """
        logits, indices = finite(self.device.download(self._logits)), self.device.download(self._indices)[:count]
        self.expect_finite()
        return logits, [int(index) for index in indices]

    def expect_finite(self) -> None:
        """Check what was computed since the image came.

        Raises:
            ImageError: There was NaN or infinity.
        """
        expect_finite(not self.device.download(self.kernels.strange)[0])

    def maps(self) -> tuple[Floats, ...]:
        """Return F_l of each layer, float32 [C_l, h_l, w_l], in the host's memory."""
        return tuple(self.device.download(own) for own in self._maps)

    def averages(self, count: int) -> list[Floats]:
        """Return α_l of each layer for so many classes, float32 [K, C_l], in the host's memory.

        Raises:
            ImageError: The network computed NaN or infinity.
        """
        return [finite(self.device.download(own)[:count]) for own in self._averages]

    def score(
        self,
        table: Table,
        ranges: Ranges,
        classes: Sequence[int],
        activation: str,
        pace: Pace,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[Array, int]:
        """Score masks for some classes.

        Args:
            table: The masks.
            ranges: Theirs.
            classes: Indices of the K classes.
            activation: What turns logits into class scores.
            pace: Says before each batch how far to go.
            meanwhile: What the host has to do besides, called once, when the device has enough to do.

        Returns:
            float64 [n, K] on the device, and how many rows of it there are.

        Raises:
            CancelledError: The caller wants no result any more.
            DeviceMemoryError: Not even one masked image fits into the memory.
            BackendError: The runtime failed.
        """
        targets = self.device.upload(np.array(classes, np.int64))
        scores = self.device.empty((max(table.count, 1), len(classes)), np.float64)
        waiting: deque[tuple[Mark, int, int]] = deque()
        before, told, done = self.device.mark(), 0, 0
        besides = [meanwhile]

        def wait_for_one(before: Mark, told: int) -> tuple[Mark, int]:
            if besides:
                besides.pop()()
            mark, rows, paid = waiting.popleft()
            mark.wait()
            pace.measured(paid, mark.ms_since(before) / 1e3)
            pace.report(told + rows, table.count)
            return mark, told + rows

        pace.report(0, table.count)
        while done < table.count:
            while pace.ends is not None and waiting:  # what is under way is no part of the time that is left
                before, told = wait_for_one(before, told)
            if not pace.room(done, table.count) or (done and pace.fit() < self.batch_size):
                break
            part = range(done, min(done + self.batch_size, table.count))  # fewer would cost as much
            if not self._try_part(table, ranges, part):
                self._make_room()
                self._make_batch()
                continue
            self.kernels.activate(self._scored, len(part), targets, activation, scores, part.start)
            waiting.append((self.device.mark(), len(part), self.batch_size))
            done = part.stop
            if len(waiting) > _AHEAD:
                before, told = wait_for_one(before, told)
        while waiting:
            before, told = wait_for_one(before, told)
        if besides:  # nothing was scored
            meanwhile()
        return scores, done

    def _try_part(self, table: Table, ranges: Ranges, part: range) -> bool:
        """Score some masks; return whether there was memory for that. The error is not kept: it keeps the batch."""
        try:
            self.kernels.write_masks(self._batch, self._contrast, self._baseline, table, ranges, part)
            self._run()
        except DeviceMemoryError:
            return False
        return True

    def _make_batch(self) -> None:
        """Allocate the scoring batch, which stays where it is, and run it once."""
        asked, self.asked_batch_size = self.asked_batch_size, 0  # if this fails, the next image tries it again
        while not self._try_batch(self.batch_size):
            self._make_room()
        self.asked_batch_size = asked

    def _try_batch(self, size: int) -> bool:
        """Take a batch of a size; return whether there was memory for it."""
        try:
            if size not in self._batches:
                self._batches[size] = self._new_batch(size)
                while len(self._batches) > _KEPT:
                    del self._batches[next(iter(self._batches))]
        except DeviceMemoryError:
            return False
        self._batch, self._scored, self._run = self._batches[size]
        return True

    def _new_batch(self, size: int) -> tuple[Array, Array, Callable[[], None]]:
        batch = self.device.empty((size, *self._shape), self._element)
        scored = self.device.empty((size, self._classes), np.float32)
        self.device.clear(batch)  # the rest of the last batch is computed as well
        run = self._forward.bind([(batch, (size, *self._shape))], [(scored, (size, self._classes))])
        run()  # takes memory, chooses algorithms, builds or captures: no image waits for that
        return batch, scored, run

    def _make_room(self) -> None:
        """Free what is kept for batches of other sizes; where there is nothing, score half as many at a time."""
        if not set(self._batches) - {self.batch_size}:
            if self.batch_size == 1:
                raise DeviceMemoryError(
                    f"{self._gpu.name}: has no memory for one masked image; expected some: end other programs that use "
                    "it"
                )
            self.batch_size //= 2
            logging.getLogger(__name__).warning("out of device memory: batches of %d from now on", self.batch_size)
        self._batches = {size: own for size, own in self._batches.items() if size == self.batch_size}
        self._batch = self._scored = None
        self._run = _nothing
        self.device.free_unused()


def _nothing() -> None:
    """Stands for the runs of a batch that was given up."""


class BatchStopwatch:
    """Measures how fast a GPU scores batches of a size, for a bounded time altogether: a `engine.tuning.Rate`.

    Args:
        bundle: The compiled model.
        gpu: Where.
        precision: In what.

    Raises:
        BackendError: The runtime refused the graph.
    """

    def __init__(self, bundle: Bundle, gpu: Gpu, precision: str) -> None:
        self._device, self._element = gpu.memory, gpu.element(precision)
        self._shape, self._classes = bundle.image_shape, bundle.classes
        self._forward = gpu.open(bundle.forward, precision=precision, many_runs=True)
        self._images = np.random.default_rng(0).standard_normal((_DIFFERENT, *self._shape), np.float32)
        self._ends = time.perf_counter() + _SWEEP_S  # to open the graph may take longer

    def __call__(self, setup: Setup) -> float:
        """Return images a second; 0 when the time is up, or a batch does not fit into the memory."""
        size = setup.batch_size
        if time.perf_counter() >= self._ends:
            return 0.0
        try:
            images = np.resize(self._images, (size, *self._shape)).astype(self._element)
            batch, logits = self._device.upload(images), self._device.empty((size, self._classes), np.float32)
            began = time.perf_counter()
            run = self._forward.bind([(batch, batch.shape)], [(logits, logits.shape)])
            self._ends += time.perf_counter() - began  # TensorRT builds an engine for each size, and keeps it
            took, done, runs = 0.0, 0, 1
            while took < _SLOT_MS and time.perf_counter() < self._ends:
                run()  # the first prepares it, and captures it
                before = self._device.mark()
                for _ in range(runs):
                    run()
                after = self._device.mark()
                before.wait()
                after.wait()
                took, done, runs = after.ms_since(before), runs, 2 * runs
        except DeviceMemoryError:
            return 0.0
        return 1e3 * done * size / max(took, 1e-6)
