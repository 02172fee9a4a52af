"""One image before the network: what methods and measures ask it."""

import time
from collections.abc import Callable, Sequence
from queue import Empty
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.backends import Session
from engine.bundle import Bundle
from engine.clock import Clock
from engine.contract import expect_explained
from engine.costs import Costs
from engine.deadline import Deadline
from engine.errors import OptionError
from engine.image import Baseline, Photo, make_baseline, prepare
from engine.kernels import activate
from engine.kernels.device import DeviceImage
from engine.lanes import SharedLanes, run_watched
from engine.network import FORWARD, Network, Tapped
from engine.options import TOP_CLASS, Options
from engine.pace import Pace, expect_wanted
from engine.resident import CLASSES_AT_ONCE, Resident
from engine.scoring import Rows, finite, run_rows, score_rows

Floats = NDArray[np.float32]

Given: TypeAlias = "Photo | DeviceImage"
"""What can be explained; interop alone makes device images."""

LAST_LAYER = "last_layer"
_GRADIENT_COST = 4  # an upper estimate, in forward passes


class Probe:
    """One image and the classes that are asked about.

    Args:
        bundle: The compiled model.
        network: Its graphs.
        photo: The image, as `engine.image.prepare` takes it.
        targets: Indices of the classes, `TOP_CLASS` for the top-1 class.
        options: How to ask.
        costs: What runs have taken lately, for deadlines.
        finish_s: Says what a method needs for each class after its last run of the network, in seconds: a deadline
            leaves so much.
        shared: The lanes, if changed forms of other images are scored with this one's.
        wants_maps: Whether visualization maps will be asked for.

    Raises:
        ImageError: The image cannot be read or does not fit.

    Attributes:
        bundle, network, targets, options, wants_maps: As given.
        device_image: The image, if it is in device memory.
        picture: The part of the photo that the network sees; black, if the image is in device memory.
        deadline: When the result shall be there.
        clock: What took how long.
        evaluations: How many images each graph has computed, by the graph's name.
        scored_at: When the network last ended a run, by `time.perf_counter`.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: Network,
        photo: Given,
        targets: Sequence[int],
        options: Options,
        costs: Costs,
        finish_s: Callable[[], float] = float,
        shared: SharedLanes | None = None,
        *,
        wants_maps: bool = False,
    ) -> None:
        self.clock = Clock()
        self.bundle, self.network, self.targets, self.options = bundle, network, targets, options
        self.wants_maps = wants_maps
        self.evaluations: dict[str, int] = {}
        self._logits: Floats | None = None
        self._tapped: Tapped | None = None
        self._last: Tapped | None = None
        self._costs = costs
        self._shared = shared
        self._image_s = 1.0
        self.deadline = Deadline(
            options,
            costs,
            self.clock.began,
            finish_s,
            classes=len(targets),
            spare=f"{LAST_LAYER} of {min(len(targets), CLASSES_AT_ONCE)}",
            spare_runs=-(-len(targets) // CLASSES_AT_ONCE),
        )
        self.device_image = photo if isinstance(photo, DeviceImage) else None
        if isinstance(photo, DeviceImage):
            self.picture = Image.new("L", bundle.image_shape[:0:-1])  # nobody here has seen it
        else:
            with self.clock("prepare"):
                prepared = prepare(photo, bundle.preprocess, bundle.image_shape)
            self._image, self.picture = prepared.array, prepared.picture
        self.scored_at = time.perf_counter()

    @property
    def image(self) -> Floats:
        """The network's input, float32 [1, C, H, W].

        Raises:
            OptionError: It is in device memory alone.
        """
        if self.device_image is not None:
            raise OptionError(
                "the image is in device memory, where only methods 'ada-sise' and 'sise' work, with baseline 'zero' or "
                "a colour, and without a deadline; expected these, or the image in the host's memory"
            )
        return self._image

    @property
    def size(self) -> tuple[int, int]:
        """H and W of the network's input."""
        return self.bundle.image_shape[1:]

    @property
    def logits(self) -> Floats:
        """The logits of the unchanged image, float32 [1, classes]: of the tapped pass, else of a run of their own.

        Raises:
            ImageError: The network computes NaN or infinity.
            BackendError: The runtime failed.
        """
        if self._logits is None:
            with self.clock("classify"):
                self._logits = finite(self.run(FORWARD, [self.image])[0])
            self._image_s = _GRADIENT_COST * self.clock.timings_ms["classify"] / 1e3
        return self._logits

    @property
    def classes(self) -> list[int]:
        """Indices of the K classes, the top-1 class by its own."""
        return self._indices(self.targets)

    def class_scores(self, logits: Floats | None = None) -> NDArray[np.float64]:
        """Return scores for the K classes, float64 [K].

        Args:
            logits: Of one image, float32 [1, classes]; None for those of the unchanged image.
        """
        logits = self.logits if logits is None else logits
        scores: NDArray[np.float64] = activate(logits, self.options.activation)[0, self.classes]
        return scores

    def baseline(self, baseline: Baseline) -> Floats | None:
        """Make what masked-out pixels become; see `engine.image.make_baseline`."""
        by_shape = self.device_image is not None and baseline != "blur"
        image = np.zeros((1, *self.bundle.image_shape), np.float32) if by_shape else self.image
        return make_baseline(baseline, image, self.bundle.preprocess)

    def tap(self) -> Tapped:
        """Run the tapped pass, once.

        Raises:
            ImageError: The network computes NaN or infinity.
            DeadlineError: It would take, or takes, too long.
            CancelledError: The caller wants no result any more.
            BundleError: The tapped graph is not one that the exporter writes.
            BackendError: The runtime failed.
        """
        if self._tapped is None:
            self._tapped = self._tap("tapped")
        return self._tapped

    def tap_on(self, gpu: Resident, meanwhile: Callable[[int], None]) -> None:
        """Run the tapped pass on a GPU, where the maps and average gradients stay.

        Args:
            gpu: Where.
            meanwhile: Called before the host waits for it, with how many classes the average gradients there are of:
                many classes take several passes.

        Raises:
            As `tap`.
        """
        for start in range(0, len(self.targets), CLASSES_AT_ONCE):
            part = self.targets[start : start + CLASSES_AT_ONCE]
            expect_wanted(self.options.cancel)
            work = f"tapped of {len(part)}"
            self._until("tapped", work)
            began = time.perf_counter()
            gpu.tap(part)
            meanwhile(len(part))
            self._logits, indices = gpu.read(len(part))
            self._image_s = time.perf_counter() - began
            self._costs.note(work, self._image_s)
            expect_explained("tapped", indices, self._indices(part))
            self.count("tapped", 1)

    def layer(self, number: int) -> tuple[Floats, Floats]:
        """Return F_l and α_l of one layer: of the tapped pass, or of a shorter run if it is the last layer.

        Args:
            number: Number of the feature layer, from 0; or −1 for the last.

        Returns:
            float32 [C_l, h_l, w_l] and [K, C_l].

        Raises:
            As `tap`.
        """
        found = self._tapped
        if found is None and number in (-1, len(self.bundle.layers) - 1):
            self._last = found = self._last or self._tap(LAST_LAYER)
            number = -1
        found = found or self.tap()
        return found.maps[number], found.averages[number]

    def run(self, graph: str, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run a graph of the bundle once, unless the caller wants no result any more.

        Raises:
            DeadlineError: It would take, or takes, too long.
            CancelledError: The caller wants no result any more.
            BundleError: The bundle has no such graph, or another than its manifest says.
            BackendError: The runtime failed.
        """
        session = self._session(graph)
        expect_wanted(self.options.cancel)
        work = f"{graph} of {len(inputs[-1])}"  # classes, or images
        until = self._until(graph, work)
        began = time.perf_counter()
        try:
            outputs = run_watched(session, inputs, until, self.options.cancel)
        except Empty:
            self._costs.note_stopped(work, time.perf_counter() - began)
            raise self.deadline.error(f"{graph}.onnx had to be stopped") from None
        self._costs.note(work, time.perf_counter() - began)
        self.count(graph, len(inputs[0]))
        return outputs

    def score(
        self,
        rows: Rows,
        count: int | None = None,
        *,
        graph: str | None = None,
        activation: str | None = None,
        least: int = 1,
    ) -> NDArray[np.float64]:
        """Score changed images, or feature maps of the last layer, for the K classes.

        Args:
            rows: What to score, the most important first: a deadline may leave the last out.
            count: Score the first so many; None for all.
            graph: `forward` for float32 whatever the caller's precision, or `head` for feature maps; None for the graph
                of that precision.
            activation: What turns logits into class scores, instead of what the caller chose.
            least: Without the scores of so many rows there is no map, or of all if there are fewer.

        Returns:
            float64 [n, K], the scores of the first n rows.

        Raises:
            ImageError: The network computes NaN or infinity.
            DeadlineError: There is no time for so few, or for anything after them.
            CancelledError: The caller wants no result any more.
            BackendError: The runtime failed, or the system has no more threads.
        """
        graph = self.network.scorer if graph is None else graph
        classes, session, options = self.classes, self._session(graph), self.options
        pace, activation = self.pace(graph), activation or options.activation
        with self.clock("score"):
            scores = score_rows(session, rows, classes, activation, options.batch_size, pace, count, self._shared)
        self.count(graph, len(scores))
        self._expect_rows(len(scores), min(least, len(rows) if count is None else count))
        return scores

    def gradients(
        self,
        rows: Rows,
        targets: NDArray[np.int64],
        count: int,
        keep: Callable[[range, Floats, Floats], None],
        batch_size: int | None = None,
    ) -> int:
        """Differentiate logits at changed images.

        Args:
            rows: The images [C, H, W].
            targets: int64 [n], for each of them the class whose logit is differentiated.
            count: Take the first so many.
            keep: Takes the numbers of the images of a run, their logits float32 [m, classes] and ∂logit/∂image
                float32 [m, C, H, W], in order.
            batch_size: The most images in a run, where each depends on what was kept before; None for the caller's.

        Returns:
            How many images were taken: a deadline may leave the last out.

        Raises:
            ImageError: The network computes NaN or infinity.
            DeadlineError: There is no time for one.
            CancelledError: The caller wants no result any more.
            BundleError: The bundle has no gradient graph.
            BackendError: The runtime failed.
        """
        session = self._session("gradient")  # runs one at a time, so that `keep` is called in order
        _ = self.logits

        def take(part: range, outputs: list[NDArray[np.generic]]) -> None:
            keep(part, finite(outputs[0]), finite(outputs[1]))

        def beside(part: range) -> list[NDArray[np.generic]]:
            return [targets[part.start : part.stop]]

        pace = self.pace("gradient")
        most = self.options.batch_size if batch_size is None else batch_size
        with self.clock("score"):
            done = run_rows(session, rows, count, most, pace, take, beside, self._shared)
        self.count("gradient", done)
        self._expect_rows(done, min(1, count))
        return done

    def pace(self, graph: str) -> Pace:
        """Return what says before each run of a graph how far to go.

        Raises:
            DeadlineError: There is no time for what comes after the runs.
        """
        return Pace(
            ends=self.deadline.expect_time_to_score(),
            costs=self._costs,
            row=f"row of {graph}",
            first_s=self._image_s * self._runs_at_once(graph),
            progress=self.options.progress,
            cancel=self.options.cancel,
        )

    def affordable(self) -> int | None:
        """Return how many masks are likely to be scored before the deadline; None when there is none."""
        if self.options.deadline_ms is None:
            return None
        return int(min(self.pace(self.network.scorer).fit(), 1e9)) * self._runs_at_once(self.network.scorer)

    def _indices(self, targets: Sequence[int]) -> list[int]:
        top = int(self.logits.argmax())
        return [top if target == TOP_CLASS else int(target) for target in targets]

    def _runs_at_once(self, graph: str) -> int:
        on_device = graph == self.network.scorer and self.network.resident is not None
        return 1 if on_device else self._session(graph).runs_at_once

    def _session(self, graph: str) -> Session:
        if self.network.is_open(graph):
            return self.network.session(graph)
        with self.clock("open"):
            return self.network.session(graph)

    def count(self, graph: str, images: int) -> None:
        """Take note that a graph has computed so many images, until now."""
        self.evaluations[graph] = self.evaluations.get(graph, 0) + images
        self.scored_at = time.perf_counter()

    def _tap(self, graph: str) -> Tapped:
        """Run `tapped`, or `last_layer`, which is the same for that layer alone."""
        averages: list[list[Floats]] = []
        with self.clock("tap"):
            for start in range(0, len(self.targets), CLASSES_AT_ONCE):
                part = self.targets[start : start + CLASSES_AT_ONCE]
                logits, indices, *rest = self.run(graph, [self.image, np.array(part, np.int64)])
                count = len(rest) // 2
                self._logits = finite(logits)
                expect_explained(graph, indices.tolist(), self._indices(part))
                averages.append([finite(alpha) for alpha in rest[count:]])
            maps = [finite(layer)[0] for layer in rest[:count]]
        self._image_s = self.clock.timings_ms["tap"] / 1e3  # such a run holds a forward one
        return Tapped(
            maps=tuple(maps), averages=tuple(np.concatenate(alphas) for alphas in zip(*averages, strict=True))
        )

    def _until(self, graph: str, work: str) -> float | None:
        """Return when a run is to be stopped, on the clock of `time.perf_counter`; None for never.

        Raises:
            DeadlineError: It would be late.
        """
        if self.deadline.spares:
            if graph == LAST_LAYER:  # it is what the caller gets instead
                return None
            if self.deadline.spare_s is None:
                for _ in range(2):  # measures it, and has the map ready; the first call with a deadline pays for it
                    self._last = self._tap(LAST_LAYER)
        has_spare = self._last is not None or self._tapped is not None
        return self.deadline.expect_time_for(work, graph, has_spare=has_spare)

    def _expect_rows(self, done: int, least: int) -> None:
        if done < least:
            raise self.deadline.error(f"there was time for {done} of at least {least} masks")
