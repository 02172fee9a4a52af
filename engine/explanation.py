"""The result of an explanation, and everything that an auditor wants to know of how it came about."""

import io
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.errors import OptionError
from engine.picture import Row, Tile, figure, overlay, panel


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
        height: Height of one map.
        width: Width of one map.
        positive: How many have a positive average gradient.
        selected: How many the rule kept.
        flat: How many of the selected are constant and so make no mask.
        scored: How many masks were scored.
        threshold: The smallest average gradient that was kept, or None.
        fusion_threshold: Where the layer's visualization map was cut, or None: the first layer that has a map is not
            cut, and a layer without one is skipped.
        selected_channels: int64 [selected], the strongest average gradient first.
        scores: float64 [selected], the class score of the image under each channel's mask; NaN where none was scored.
        estimated_scores: float64 [selected], what stands in for the scores of masks that were not scored; else NaN.
    """

    name: str
    channels: int
    height: int
    width: int
    positive: int
    selected: int
    flat: int
    scored: int
    threshold: float | None
    fusion_threshold: float | None
    selected_channels: NDArray[np.int64]
    scores: NDArray[np.float64]
    estimated_scores: NDArray[np.float64]

    def as_json(self) -> dict[str, object]:
        """Return the report in JSON's types."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        scores = {
            name: [None if np.isnan(score) else float(score) for score in entries[name]]
            for name in ("scores", "estimated_scores")
        }
        return entries | {"selected_channels": self.selected_channels.tolist(), **scores}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """Why the model scored one class of one image as it did.

    Attributes:
        heatmap: float32 [H, W] from 0 to 1, over the network's input.
        target: Index of the explained class.
        label: Its name, or None when the bundle has no labels.
        class_score: Its score for the unmasked image, by `activation`.
        activation: `softmax`, `sigmoid` or `none`.
        method: Name of the method.
        options: The method's own options.
        layers: One report per feature layer, shallow to deep; empty for methods that do not work on all of them.
        max_masks: The most masks that the caller allowed; None for all.
        deadline_ms: When the result should have been there, in milliseconds after the call; None for no deadline.
        precision: In what its masks were scored: `float32`, `int8` …; everything else is float32, and so is a map for
            which none was.
        unit: What `scored` and `scorable` count: `masks`, `samples`, ….
        scored: Number of masks of this class that were scored, or of changed images that were differentiated.
        scorable: Number of masks that there were to score: of Ada-SISE those that the rule selected and that are not
            flat. 0 for a method that changes no image.
        complete: Whether every scorable mask was scored.
        evaluations: How many images each graph of the bundle has computed, by its name, in the whole call: classes
            explained together share them.
        figures: What the method measures of itself, by name.
        timings_ms: Milliseconds by phase, of the whole call: classes explained together share them.
        warnings: What the reader of the heatmap should know.
        picture: The part of the photo that the network saw.
        attribution: float32 [C, H, W], the signed contribution of every input value, or None for methods without it.
        visualization_maps: float32 [H, W] per layer, None for a skipped layer; None unless asked for.
    """

    heatmap: NDArray[np.float32]
    target: int
    label: str | None
    class_score: float
    activation: str
    method: str
    options: Mapping[str, object]
    layers: tuple[LayerReport, ...]
    max_masks: int | None
    deadline_ms: float | None
    precision: str
    unit: str
    scored: int
    scorable: int
    complete: bool
    evaluations: Mapping[str, int]
    figures: Mapping[str, float]
    timings_ms: Mapping[str, float]
    warnings: tuple[str, ...]
    picture: Image.Image = field(repr=False)
    attribution: NDArray[np.float32] | None = field(default=None, repr=False)
    visualization_maps: tuple[NDArray[np.float32] | None, ...] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What people call the class: its label and index, or its index alone."""
        return f"class {self.target}" if self.label is None else f"{self.label} ({self.target})"

    @property
    def how(self) -> str:
        """The method, its options and the masks, in one line."""
        options = [f"{name} {_words(value)}" for name, value in self.options.items() if self._says(name, value)]
        precision = () if self.precision == "float32" else (self.precision,)
        return " · ".join([self.method, *options, *self._counted(), *precision])

    def __str__(self) -> str:
        facts = [f"score {self.class_score:.3f}", *self._counted(), f"{self.timings_ms['total']:.0f} ms"]
        return f"{self.name}: {', '.join(facts)}"

    def overlay(self, opacity: float = 0.7) -> Image.Image:
        """Draw the heatmap over the part of the photo that the network saw, at the photo's own resolution.

        Args:
            opacity: Opacity of the hottest pixel, from 0 to 1.

        Raises:
            OptionError: The opacity is not between 0 and 1.
        """
        return overlay(self.heatmap, self.picture, opacity)

    def figure(self) -> Image.Image:
        """Draw what the network saw beside the heatmap, with the class, its score, a colour scale and the warnings."""
        return figure(self.heatmap, self.picture, title=self._title(), lines=self._subtitle(), warnings=self.warnings)

    def panel(self) -> Image.Image:
        """Draw what the network saw, the visualization map of every layer, and the heatmap, side by side.

        Raises:
            OptionError: The explanation holds no visualization maps.
        """
        return draw_panel([self])

    def _repr_png_(self) -> bytes:
        """Return the figure as a PNG file: what a notebook shows."""
        return _png(self.figure())

    def report(self) -> dict[str, object]:
        """Return everything but the images, in JSON's types."""
        left_out = ("heatmap", "picture", "attribution", "visualization_maps")
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in left_out}
        copies = {name: dict(value) for name, value in entries.items() if isinstance(value, Mapping)}
        return {
            **entries,
            **copies,
            "layers": [layer.as_json() for layer in self.layers],
            "options": _in_json(self.options),
        }

    def save(self, path: str | Path) -> None:
        """Write the explanation to a file.

        Args:
            path: `*.png` for the figure; `*.npz` for `heatmap`, `attribution` if it is there, the visualization maps
                that are there as `visualization_map_1` …, and `report`, JSON text; it loads without pickle.

        Raises:
            OptionError: The name ends in something else, or the file cannot be written.
        """
        path = Path(path)
        kind = file_kind(path)
        write_whole(path, _png(self.figure()) if kind == ".png" else _npz(self._arrays()))

    def _says(self, name: str, value: object) -> bool:
        """Tell whether an option says anything: a `mu` of 0 is none, but a seed of 0 is a seed."""
        cut = name == "preset" and value == "exact" and not self.complete  # by a budget or a deadline
        return value is not None and not (name == "mu" and value == 0) and not cut

    def _title(self) -> str:
        return f"class {self.target}" if self.label is None else self.label

    def _counted(self) -> tuple[str, ...]:
        if self.scorable == 0 and not self.layers:
            return ()
        part = "" if self.scored == self.scorable else f" of {self.scorable}"
        return (f"{self.scored}{part} {self.unit}",)

    def _subtitle(self) -> tuple[str, ...]:
        score = f"{self.class_score:.4g} (logit)"
        if self.activation != "none":
            score = f"{_percent(self.class_score)} ({self.activation})"
        index = "" if self.label is None else f"class {self.target} · "
        return f"{index}score {score}", self.how

    def _row(self) -> Row:
        if self.visualization_maps is None:
            raise OptionError(
                "the explanation holds no visualization maps to draw in a panel; explain with visualization_maps=True"
            )
        views = zip(self.layers, self.visualization_maps, strict=True)
        return Row(
            picture=self.picture,
            title=self._title(),
            lines=self._subtitle(),
            warnings=self.warnings,
            tiles=(
                Tile(caption=("what the network saw",)),
                *(_layer_tile(number, layer, view) for number, (layer, view) in enumerate(views, start=1)),
                Tile(heatmap=self.heatmap, caption=("heatmap", "all layers fused")),
            ),
        )

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        maps = enumerate(self.visualization_maps or (), start=1)
        views = {f"visualization_map_{number}": view for number, view in maps if view is not None}
        if self.attribution is not None:
            views["attribution"] = self.attribution
        return {"heatmap": self.heatmap, "report": np.array(json.dumps(self.report())), **views}


def draw_panel(explanations: Sequence[Explanation]) -> Image.Image:
    """Draw one row per explanation: what the network saw, the visualization map of every layer, and the heatmap.

    Args:
        explanations: At least one, each made with `visualization_maps=True`.

    Raises:
        OptionError: There is none, or one holds no visualization maps.
    """
    if not explanations:
        raise OptionError("a panel of no explanations was asked for; expected at least one")
    return panel([explanation._row() for explanation in explanations])


def save_panel(explanations: Sequence[Explanation], path: Path) -> None:
    """Write the panel of `draw_panel` as a PNG file.

    Raises:
        OptionError: There is nothing to draw, or the file cannot be written.
    """
    write_whole(path, _png(draw_panel(explanations)))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that it is there whole, or as it was.

    Raises:
        OptionError: The file cannot be written.
    """
    beside = path.with_name(f".{secrets.token_hex(8)}.part")  # not by the name: that may be as long as names can be
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except (OSError, ValueError) as err:  # a ValueError is about a name that no system takes
        reason = (err.strerror if isinstance(err, OSError) else None) or str(err)
        raise OptionError(f"{path}: cannot be written: {reason}") from err
    finally:
        with suppress(OSError, ValueError):  # it was renamed, or could not be made
            beside.unlink()


def _layer_tile(number: int, layer: LayerReport, view: NDArray[np.float32] | None) -> Tile:
    scorable = layer.selected - layer.flat
    part = "" if layer.scored == scorable else f" of {scorable}"
    caption = [
        f"layer {number}",
        layer.name,
        f"{layer.channels}×{layer.height}×{layer.width}, {layer.scored}{part} scored",
    ]
    if view is None:
        return Tile(empty=_why_empty(layer), caption=caption)
    caption.append("not cut" if layer.fusion_threshold is None else f"cut at {layer.fusion_threshold:.2f}")
    return Tile(heatmap=view, cut=layer.fusion_threshold, caption=caption)


def _why_empty(layer: LayerReport) -> str:
    if layer.selected == 0:
        return "no feature map was selected"
    if layer.selected == layer.flat:
        return f"all {layer.flat} selected maps are constant"
    return "its masks add up to a constant map"


def _words(value: object) -> str:
    """Return an option's value as people write it."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_words, value))})"
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _in_json(options: Mapping[str, object]) -> dict[str, object]:
    """Return options in JSON's types."""
    return {
        name: [float(number) for number in value]
        if isinstance(value, tuple | list)
        else value.item()
        if isinstance(value, np.generic)
        else value
        for name, value in options.items()
    }


def _percent(share: float) -> str:
    """Return a share as a percentage that never rounds to a certainty that it is not."""
    if 0 < share < 0.0005:
        return "below 0.1%"
    return "above 99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def _npz(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # the stub knows one keyword
    return file.getvalue()
