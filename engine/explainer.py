"""Explaining the answers of one model: an image and its classes in, explanations out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeAlias, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from engine.answer import answer
from engine.backends import Backend
from engine.bundle import Bundle, list_files
from engine.costs import Costs
from engine.deadline import FINISH
from engine.errors import BackendError, EngineError, OptionError
from engine.explanation import Explanation
from engine.image import Photo
from engine.kernels import activate
from engine.kernels.device import Device
from engine.lanes import SharedLanes
from engine.methods import Method, create_method
from engine.network import Network
from engine.options import Asked, Choices, MethodOptions, Options, Target, Targets, class_indices
from engine.pace import Cancel, Progress
from engine.probe import Given, Probe
from engine.stream import Stream, expect_several

Many: TypeAlias = Explanation | list[Explanation] | EngineError

_FINISH_S = 2e-8  # per layer and pixel


class Explainer:
    """Explains the answers of one model. Any number of threads may use it at the same time.

    It holds two copies of the model's weights until it is closed, or leaves its `with` block; methods that ask for
    other graphs of the bundle add a copy for each. A forked process may use it only if it was loaded with `threads=1`
    on device `cpu`; a spawned one loads its own.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes its graphs.
        precision: In what masks are scored, as for `load`.
        batch_size: Changed images that are scored at a time, where `explain` is given no other number.

    Raises:
        OptionError: The backend has no such precision.
        BundleError: A graph has other inputs or outputs than the manifest says, or there is none of the precision.
        BackendError: The runtime refused a graph.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str = "float32", batch_size: int = 8) -> None:
        self.bundle = bundle
        self.device = backend.device
        self.precision = precision
        self._batch_size = batch_size
        self._backend = backend
        self._network: Network | None = Network(bundle, backend, precision, batch_size)
        self._costs = Costs()

    @property
    def device_memory(self) -> Device | None:
        """The memory of the GPU that it works on; None on a CPU.

        Raises:
            BackendError: The explainer is closed.
        """
        resident = self._opened().resident
        return None if resident is None else resident.device

    def close(self) -> None:
        """Release the sessions; explanations that other threads have begun are carried out."""
        self._network = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"an Explainer cannot be pickled; load {self.bundle.path} in each process")

    def with_graphs(self, folder: Path) -> "Explainer":
        """Open another network of the same form, such as one with other weights, in the same runtime.

        Args:
            folder: Holds the graphs of the bundle under their names; no manifest is read.

        Raises:
            BundleError: A graph has other inputs or outputs than the manifest says.
            BackendError: The runtime refused a graph.
        """
        manifest = {**self.bundle.manifest, "files": list_files(folder)}
        return Explainer(
            replace(self.bundle, path=folder, manifest=manifest), self._backend, self.precision, self._batch_size
        )

    def classify(self, image: Photo, activation: str | None = None) -> NDArray[np.float64]:
        """Return the class scores of an image, float64 [classes].

        Args:
            image: As for `explain`.
            activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            OptionError: The activation is unknown.
            BackendError: The explainer is closed, or the runtime failed.
        """
        probe = self.probe(image, activation=activation)
        scores: NDArray[np.float64] = activate(probe.logits, probe.options.activation)[0]
        return scores

    def probe(
        self,
        image: Given,
        target: Target | Targets = None,
        *,
        finish_s: Callable[[], float] = float,
        shared: SharedLanes | None = None,
        wants_maps: bool = False,
        **asked: Unpack[Asked],
    ) -> Probe:
        """Take up one image, to put changed forms of it to the network: what methods and measures work with.

        Args:
            image: As for `explain`.
            target: The classes that are asked about.
            finish_s: Says what is to be done for each class after the last run of the network, in seconds.
            shared: The lanes, if changed forms of other images are scored with this one's.
            wants_maps: Whether visualization maps will be asked for.
            asked: How to ask the network, as for `explain`.

        Raises:
            ImageError: The image cannot be read or does not fit.
            TargetError: The model has no such class.
            OptionError: An option has no meaning.
            BackendError: The explainer is closed.
        """
        options = self._options(asked)
        targets = class_indices(target, self.bundle.classes, self.bundle.labels)
        given = (self.bundle, self._opened(), image, targets, options, self._costs, finish_s, shared)
        return Probe(*given, wants_maps=wants_maps)

    @overload
    def explain(self, image: Given, target: Target = None, **choices: Unpack[Choices]) -> Explanation: ...

    @overload
    def explain(self, image: Given, target: Targets, **choices: Unpack[Choices]) -> list[Explanation]: ...

    def explain(
        self,
        image: Given,
        target: Target | Targets = None,
        *,
        method: str | Method = "ada-sise",
        activation: str | None = None,
        batch_size: int | None = None,
        max_masks: int | None = None,
        deadline_ms: float | None = None,
        too_late: str = "grad-cam",
        visualization_maps: bool = False,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[MethodOptions],
    ) -> Explanation | list[Explanation]:
        """Explain one class of one image, or several classes with one scoring.

        Args:
            image: A photo (path, PIL image or uint8 [h, w, 3]), or the prepared input float32 [1, C, H, W]. For one in
                device memory see `engine.interop`.
            target: Class index or label; None for the top-1 class; or a list of these. Classes in a list share what
                they can: one run of the network and one scoring of all their masks; each gives the result that it gives
                alone.
            method: One of `engine.methods.METHODS`, or such a method itself, with its options.
            activation: `softmax`, `sigmoid` or `none` instead of the bundle's own.
            batch_size: Changed images that are scored at a time, by all lanes together; one at least by each. None for
                what `load` found, or was given.
            max_masks: The most masks to score for a class: the most important, as the method sees them. None for all.
            deadline_ms: When the result shall be there, in milliseconds after the call: masks that do not fit are left
                out. It is planned from what runs have lately taken, so the first calls may be late. None for no
                deadline.
            too_late: What a deadline that is too short for the method gives: `grad-cam`, a map of the last layer that
                says in `method`, `complete` and `warnings` what it is; or `error`, a `DeadlineError`.
            visualization_maps: Whether to keep V_l of every layer in the result, for methods that have it.
            progress: Called in the caller's thread with the masks scored and the masks planned: at first, and whenever
                more were scored. Methods that change no image never call it, and leave nothing out for a budget.
            cancel: A flag, such as `threading.Event`, that is asked now and then; set, it stops the runs under way and
                ends the call.
            options: The method's own; of Ada-SISE `rule`, `mu`, `fusion`, `baseline` and `preset`, see
                `engine.methods.AdaSise`.

        Returns:
            One explanation, or a list of them for a list of targets.

        Raises:
            ImageError: The image cannot be read or does not fit, or the network computes NaN or infinity for it.
            TargetError: The model has no such class.
            OptionError: The method or an option has no meaning.
            DeadlineError: `deadline_ms` is too short, and `too_late` is `error`.
            CancelledError: `cancel` was set.
            BackendError: The explainer is closed, the runtime failed, or the system has no more threads.
            BundleError: The bundle lacks a graph that the method needs, or has one that the exporter does not write.
        """
        chosen = self._method(method, options, visualization_maps=visualization_maps)
        asked = Asked(
            activation=activation,
            batch_size=batch_size,
            max_masks=max_masks,
            deadline_ms=deadline_ms,
            too_late=too_late,
            progress=progress,
            cancel=cancel,
        )
        results = self._explain(image, target, chosen, visualization_maps, asked)
        return results if isinstance(target, list | tuple) else results[0]

    @overload
    def explain_many(
        self,
        images: Iterable[Photo],
        target: Target = None,
        *,
        ordered: Literal[True] = True,
        return_exceptions: Literal[False] = False,
        **choices: Unpack[Choices],
    ) -> Iterator[Explanation]: ...

    @overload
    def explain_many(
        self,
        images: Iterable[Photo],
        target: Targets,
        *,
        ordered: Literal[True] = True,
        return_exceptions: Literal[False] = False,
        **choices: Unpack[Choices],
    ) -> Iterator[list[Explanation]]: ...

    @overload
    def explain_many(
        self,
        images: Iterable[Photo],
        target: Target | Targets = None,
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        **choices: Unpack[Choices],
    ) -> Iterator[Many | tuple[int, Many]]: ...

    def explain_many(
        self,
        images: Iterable[Photo],
        target: Target | Targets = None,
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        method: str | Method = "ada-sise",
        visualization_maps: bool = False,
        activation: str | None = None,
        batch_size: int | None = None,
        max_masks: int | None = None,
        deadline_ms: float | None = None,
        too_late: str = "grad-cam",
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[MethodOptions],
    ) -> Iterator[Many | tuple[int, Many]]:
        """Explain many images, several at a time: their masks are scored in the same batches.

        Each result is what `explain` gives for the image alone. Images are taken from the iterable in the caller's
        thread, when results are asked for, a few ahead of them; it may be endless. To leave the loop, to close the
        iterator or to drop it ends everything that is under way.

        Args:
            images: Photos, or prepared inputs, as `explain` takes them. An array may be filled anew for the next image;
                a PIL image, an open file or a `bytearray` must stay as it is until its result is there.
            target: As for `explain`, the same for every image.
            ordered: Whether results come in the order of the images. Otherwise each comes as soon as it is there, as a
                pair of the image's number, from 0, and the result.
            return_exceptions: Whether an image that cannot be explained gives its `EngineError` in the place of a
                result. Otherwise the error is raised, with the image's number, when its turn has come, which ends the
                iteration.
            method: As for `explain`, and so are all others but these:
            visualization_maps: As for `explain`.
            activation: As for `explain`.
            batch_size: As for `explain`.
            max_masks: As for `explain`.
            deadline_ms: Counts for each image from when it is begun; the images under way share the network's time.
            too_late: As for `explain`.
            progress: Called in the caller's thread, while it waits for a result, with the masks scored and planned of
                all images begun so far.
            cancel: Ends the iteration with a `CancelledError`.
            options: As for `explain`.

        Returns:
            An iterator of explanations, or of lists of them for a list of targets; of pairs with their numbers if they
            are not ordered.

        Raises:
            TargetError: The model has no such class; at once, as the next two.
            OptionError: The method or an option has no meaning, or `images` is a single photo.
            BackendError: The explainer is closed; later, that the system has no more threads.
            CancelledError: `cancel` was set.
        """
        expect_several(images)
        chosen = self._method(method, options, visualization_maps=visualization_maps)
        asked = Asked(
            activation=activation,
            batch_size=batch_size,
            max_masks=max_masks,
            deadline_ms=deadline_ms,
            too_late=too_late,
            progress=progress,
            cancel=cancel,
        )
        made = self._options(asked)
        self._opened()
        class_indices(target, self.bundle.classes, self.bundle.labels)
        several = isinstance(target, list | tuple)

        def explain(
            image: Photo, *, shared: SharedLanes, progress: Progress | None, cancel: Cancel
        ) -> Explanation | list[Explanation]:
            here = asked.copy()
            here["progress"], here["cancel"] = progress, cancel
            found = self._explain(image, target, chosen, visualization_maps, here, shared)
            return found if several else found[0]

        return iter(
            Stream(
                images,
                explain,
                made.batch_size,
                ordered=ordered,
                return_exceptions=return_exceptions,
                progress=progress,
                cancel=cancel,
            )
        )

    def _method(self, method: str | Method, options: Mapping[str, object], *, visualization_maps: bool) -> Method:
        """Return the method with its options."""
        chosen = create_method(method, options)
        if visualization_maps and not chosen.layered:
            raise OptionError(
                f"visualization_maps is True; expected False with method {chosen.name!r}, which makes no such maps"
            )
        return chosen

    def _options(self, asked: Asked) -> Options:
        """Return what is asked for, with the bundle's activation and the batch size of `load` where it is None."""
        usual = Options(activation=self.bundle.activation, batch_size=self._batch_size)
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return replace(usual, **given)

    def _opened(self) -> Network:
        if self._network is None:
            raise BackendError(f"{self.bundle.path}: the explainer was closed; load the bundle again")
        return self._network

    def _explain(
        self,
        image: Given,
        target: Target | Targets,
        method: Method,
        visualization_maps: bool,
        asked: Asked,
        shared: SharedLanes | None = None,
    ) -> list[Explanation]:
        """Explain every class that is asked about."""
        _, height, width = self.bundle.image_shape
        first_s = _FINISH_S * len(self.bundle.layers) * height * width

        def finish_s() -> float:
            return self._costs.high(FINISH.format(method.name)) or first_s

        with self._costs.call():
            probe = self.probe(image, target, **asked, finish_s=finish_s, shared=shared, wants_maps=visualization_maps)
            return answer(probe, method, self._costs, visualization_maps=visualization_maps)


def top_classes(explainer: Explainer, photo: Photo, count: int) -> list[int]:
    """Return the classes of the highest scores, the highest first; of equal ones the lower index first."""
    logits = explainer.classify(photo, "none")  # of scores, several may be 1, or 0
    return [int(index) for index in np.argsort(-logits, kind="stable")[:count]]
