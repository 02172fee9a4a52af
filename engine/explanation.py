"""The result of an explanation, and everything that an auditor wants to know of how it came about."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import OptionError
from engine.image import overlay


def file_kind(path: Path) -> str:
    """Return the ending that says how an explanation is saved there: `.png` or `.npz`.

    Raises:
        OptionError: The name has another ending.
    """
    kind = path.suffix.lower()
    if kind not in (".png", ".npz"):
        raise OptionError(f"{path}: cannot save as {kind or 'a file without ending'}; expected a name in .png or .npz")
    return kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerReport:
    """What happened in one feature layer.

    Attributes:
        name: The layer's tensor name in the source model.
        channels: Number of feature maps.
        positive: How many have a positive average gradient.
        selected: How many the rule kept.
        flat: How many of the selected are constant and so make no mask.
        scored: How many masks were scored.
        threshold: The smallest average gradient that was kept, or None.
        fusion_threshold: Where the layer's visualization map was cut, or None: the first layer that has a map is not
            cut, and a layer without one is skipped.
        selected_channels: int64 [selected], the strongest average gradient first.
        scores: float64 [selected], the class score of the image under each channel's mask; NaN where none was scored.
    """

    name: str
    channels: int
    positive: int
    selected: int
    flat: int
    scored: int
    threshold: float | None
    fusion_threshold: float | None
    selected_channels: NDArray[np.int64]
    scores: NDArray[np.float64]

    def as_json(self) -> dict[str, object]:
        """Return the report in JSON's types."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        scores = [None if np.isnan(score) else float(score) for score in self.scores]
        return entries | {"selected_channels": self.selected_channels.tolist(), "scores": scores}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """Why the model scored one class of one image as it did.

    Attributes:
        heatmap: float32 [H, W] from 0 to 1, over the network's input.
        target: Index of the explained class.
        label: Its name, or None when the bundle has no labels.
        class_score: Its score for the unmasked image, by `activation`.
        activation: `softmax`, `sigmoid` or `none`.
        rule: Selection rule.
        mu: Share of the largest gradient that rule `positive` asks for.
        fusion: `hard` or `soft`.
        baseline: What masked-out pixels became.
        layers: One report per feature layer, shallow to deep.
        max_masks: The most masks that the caller allowed; None for all.
        deadline_ms: When the result should have been there, in milliseconds after the call; None for no deadline.
        scored: Number of masks of this class that were scored, over all layers.
        scorable: Number of masks that the rule selected and that are not flat.
        complete: Whether every scorable mask was scored.
        timings_ms: Milliseconds by phase, of the whole call: classes explained together share them.
        warnings: What the reader of the heatmap should know.
        picture: The part of the photo that the network saw.
        visualization_maps: float32 [H, W] per layer, None for a skipped layer; None unless asked for.
    """

    heatmap: NDArray[np.float32]
    target: int
    label: str | None
    class_score: float
    activation: str
    rule: str
    mu: float
    fusion: str
    baseline: str | tuple[float, ...]
    layers: tuple[LayerReport, ...]
    max_masks: int | None
    deadline_ms: float | None
    scored: int
    scorable: int
    complete: bool
    timings_ms: Mapping[str, float]
    warnings: tuple[str, ...]
    picture: Image.Image = field(repr=False)
    visualization_maps: tuple[NDArray[np.float32] | None, ...] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What people call the class: its label and index, or its index alone."""
        return f"class {self.target}" if self.label is None else f"{self.label} ({self.target})"

    def __str__(self) -> str:
        masks = f"{self.scored} masks" if self.complete else f"{self.scored} of {self.scorable} masks"
        return f"{self.name}: score {self.class_score:.3f}, {masks}, {self.timings_ms['total']:.0f} ms"

    def overlay(self, opacity: float = 0.7) -> Image.Image:
        """Draw the heatmap over the part of the photo that the network saw.

        Args:
            opacity: Opacity of the hottest pixel, from 0 to 1.
        """
        return overlay(self.heatmap, self.picture, opacity)

    def report(self) -> dict[str, object]:
        """Return everything but the images, in JSON's types."""
        left_out = ("heatmap", "picture", "visualization_maps")
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}
        return entries | {
            "layers": [layer.as_json() for layer in self.layers],
            "timings_ms": dict(self.timings_ms),
        }

    def save(self, path: str | Path) -> None:
        """Write the explanation to a file.

        Args:
            path: `*.png` for the overlay; `*.npz` for `heatmap`, the visualization maps that are there as
                `visualization_map_1` …, and `report`, JSON text; it loads without pickle.

        Raises:
            OptionError: The name ends in something else, or the file cannot be written.
        """
        path = Path(path)
        kind = file_kind(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                if kind == ".png":
                    self.overlay().save(file, "png")
                else:
                    np.savez_compressed(file, **self._arrays())  # type: ignore[arg-type]  # the stub knows one keyword
            beside.replace(path)
        except OSError as err:
            raise OptionError(f"{path}: cannot be written: {err.strerror}") from err
        finally:
            beside.unlink(missing_ok=True)

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        maps = enumerate(self.visualization_maps or (), start=1)
        views = {f"visualization_map_{number}": view for number, view in maps if view is not None}
        return {"heatmap": self.heatmap, "report": np.array(json.dumps(self.report())), **views}
