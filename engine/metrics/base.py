"""What a measure is, and what it measures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import OptionError
from engine.explainer import Explainer
from engine.explanation import Explanation
from engine.methods import Method
from engine.probe import Probe

if TYPE_CHECKING:
    from engine.metrics.randomisation import Cascade

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explained:
    """One class of one image, explained: what a measure takes.

    Attributes:
        explainer: What explained it.
        probe: The image, asked about this one class, without deadline: `explainer.probe(image, target)`.
        explanation: What is measured.
        method: The method that made it, with its options.
        box_mask: bool [H, W], the pixels of the network's view that lie in a box of the class, as
            `engine.metrics.box_mask` makes it; None when there are no boxes, or all were cropped away.
        cascade: The randomised networks, when many images share them; None to make them for this image alone.

    Raises:
        OptionError: The probe asks about another class, or has a deadline; or the box mask has another shape or no
            pixel.
    """

    explainer: Explainer
    probe: Probe
    explanation: Explanation
    method: Method
    box_mask: NDArray[np.bool_] | None = None
    cascade: "Cascade | None" = None

    def __post_init__(self) -> None:
        target, classes = self.explanation.target, self.probe.classes
        if classes != [target]:
            raise OptionError(f"probe asks about the classes {classes}; expected [{target}], that of the explanation")
        if self.probe.options.deadline_ms is not None:
            raise OptionError(
                f"probe has a deadline of {self.probe.options.deadline_ms:g} ms; expected none: a measure needs all "
                "its scores"
            )
        mask = self.box_mask
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != self.heatmap.shape):
            raise OptionError(
                f"box_mask is {mask.dtype} {list(mask.shape)}; expected bool "
                f"{list(self.heatmap.shape)}, the heatmap's shape: make it with engine.metrics.box_mask"
            )
        if mask is not None and not mask.any():
            raise OptionError("box_mask holds no pixel; expected None when no box is left, as box_mask returns it")

    @property
    def heatmap(self) -> Floats:
        """The explanation's heatmap, float32 [H, W]."""
        return self.explanation.heatmap

    @property
    def image(self) -> Floats:
        """The network's input, float32 [1, C, H, W]."""
        return self.probe.image

    @property
    def class_score(self) -> float:
        """Y: the score of the class for the unchanged image."""
        return float(self.probe.class_scores()[0])

    def explain(
        self, *, image: Floats | None = None, method: Method | None = None, explainer: Explainer | None = None
    ) -> Floats:
        """Explain the class again, and all else as before.

        Args:
            image: Another image, float32 [1, C, H, W].
            method: The method with other options.
            explainer: Another network.

        Returns:
            The heatmap, float32 [H, W].
        """
        explainer = self.explainer if explainer is None else explainer
        return explainer.explain(
            self.image if image is None else image,
            self.explanation.target,
            method=self.method if method is None else method,
            activation=self.explanation.activation,
            batch_size=self.probe.options.batch_size,
            max_masks=self.explanation.max_masks,
            cancel=self.probe.options.cancel,
        ).heatmap


class Metric(Protocol):
    """A measure of explanations: a frozen dataclass whose fields are its options.

    Attributes:
        name: What users call it.
        title: A few words for the head of a table's column.
        unit: `%`, or empty for a plain number.
        higher_is_better: Whether more is better.
        needs_boxes: Whether it compares with boxes.
        cost: What it runs, in words: forward passes, explanations.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_boxes: ClassVar[bool]
    cost: ClassVar[str]

    def compute(self, explained: Explained) -> float | None:
        """Measure one explanation.

        Returns:
            The value, or None where the measure is not defined: means leave such explanations out.

        Raises:
            ImageError: The network computes NaN or infinity.
            CancelledError: The caller wants no result any more.
            BundleError: The bundle lacks a graph that the method needs.
            BackendError: The runtime failed, or the system has no more threads.
        """
        ...
