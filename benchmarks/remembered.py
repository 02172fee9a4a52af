"""An explainer that scores no mask of a feature map twice: SISE, every rule of Ada-SISE and Score-CAM share theirs.

Explaining a set of photos by all of them costs what SISE and the rest of Score-CAM's layer cost. The logits are kept on
disk, one file an image, so that hours of work need not be done again. Times mean nothing, then.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import engine
from engine.feature_masks import FeatureMasks
from engine.kernels import activate
from engine.probe import Probe
from engine.scoring import Rows, Write


class RememberingExplainer(engine.Explainer):
    """An explainer that remembers the logits of every image under every mask that a feature map makes.

    Attributes:
        folder: Where they are kept.
    """

    folder: Path

    def probe(self, *arguments, **choices) -> Probe:
        """Take up one image; see `engine.Explainer.probe`."""
        probe = super().probe(*arguments, **choices)
        probe.__class__ = _RememberingProbe
        probe.folder = self.folder
        return probe


class _RememberingProbe(Probe):
    """A probe that looks up what is known of a mask before it asks the network."""

    folder: Path

    def score(
        self,
        rows: Rows,
        count: int | None = None,
        *,
        graph: str | None = None,
        activation: str | None = None,
        least: int = 1,
    ) -> NDArray[np.float64]:
        """Score rows; see `engine.probe.Probe.score`."""
        if not isinstance(rows, FeatureMasks) or rows._baseline is not None or graph is not None:
            return super().score(rows, count, graph=graph, activation=activation, least=least)
        names = self._names(rows)
        known = self._read()
        missing = [number for number, name in enumerate(names) if name not in known]
        if missing:
            targets, self._targets = self._targets, range(self.bundle.classes)
            logits = super().score(_Some(rows, missing), activation="none").astype(np.float32)
            self._targets = targets
            known |= zip((names[number] for number in missing), logits, strict=True)
            self._write(known)
        self._count(self.scorer, len(names) - len(missing))
        write, scratch = rows.writer(), np.empty((1, *rows.shape), np.float32)
        for number in set(range(len(names))) - set(missing):
            write(range(number, number + 1), scratch)  # for the minimum and the extent of the mask
        logits = np.stack([known[name] for name in names]) if names else np.empty((0, self.bundle.classes), np.float32)
        return activate(logits, activation or self.options.activation)[:, self.classes]

    def _names(self, rows: FeatureMasks) -> list[str]:
        """Name each mask by the feature layer's shape, which no two layers share, and its channel."""
        return [f"{'x'.join(map(str, rows._maps[layer].shape))}/{channel}" for layer, channel in rows._order]

    @property
    def _file(self) -> Path:
        facts = [self.bundle.manifest["source"], self.bundle.image_shape]
        if self.precision != "float32":  # what a lower precision computes is the bundle's own
            facts += [self.precision, self.bundle.manifest["sha256"]]
        about = json.dumps(facts)
        return self.folder / f"{hashlib.sha256(about.encode() + self.image.tobytes()).hexdigest()[:32]}.npz"

    def _read(self) -> dict[str, NDArray[np.float32]]:
        if not self._file.exists():
            return {}
        with np.load(self._file, allow_pickle=False) as kept:
            return dict(zip(kept["names"].tolist(), kept["logits"], strict=True))

    def _write(self, known: dict[str, NDArray[np.float32]]) -> None:
        partial = self._file.with_suffix(".part")
        with partial.open("wb") as out:
            np.savez_compressed(out, names=np.array(list(known)), logits=np.stack(list(known.values())))
        partial.replace(self._file)


class _Some:
    """Some of other rows."""

    def __init__(self, rows: FeatureMasks, numbers: list[int]) -> None:
        self.shape = rows.shape
        self._rows = rows
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def writer(self) -> Write:
        write_one = self._rows.writer()

        def write(part: range, batch: NDArray[np.float32]) -> None:
            for row, number in enumerate(part):
                other = self._numbers[number]
                write_one(range(other, other + 1), batch[row : row + 1])

        return write
