"""Whether a heatmap depends on what the network has learned: the model-parameter randomisation check."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np

from engine.errors import OptionError
from engine.explainer import Explainer
from engine.kernels.similarity import spearman, structural_similarity
from engine.metrics.base import Explained
from engine.options import expect_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """How much is left of a heatmap when the network is randomised from the logits down to a block.

    Attributes:
        block: The lowest randomised block: `head`, then `blockL` … `block1`.
        spearman: Spearman's ρ with the heatmap of the trained network, from −1 to 1.
        structural_similarity: SSIM with it, from −1 to 1.
    """

    block: str
    spearman: float
    structural_similarity: float


class Cascade:
    """The networks of a bundle, randomised from the logits down: first the head, then block L too, at last all blocks.

    Every learned tensor is permuted: it keeps its values, so their distribution, and the sign of variances; which
    permutation depends on the seed and the tensor's name, so that all graphs of the bundle still hold one network.
    The graphs lie in a temporary folder until the `with` block is left; each network is opened when it is explained.

    Args:
        explainer: The trained network.
        seed: Chooses the permutations.

    Raises:
        OptionError: The seed is no whole number of at least 0.

    Attributes:
        explainer: The trained network.
        blocks: Names of the blocks, from the head down.
    """

    def __init__(self, explainer: Explainer, seed: int = 0) -> None:
        expect_whole("seed", seed, least=0)
        self.explainer = explainer
        self._folder = Path(tempfile.mkdtemp())
        self._seed = seed
        self.blocks = ("head", *(f"block{number}" for number in range(len(explainer.bundle.layers), 0, -1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        shutil.rmtree(self._folder)

    def explainers(self) -> Iterator[tuple[str, Explainer]]:
        """Yield each block and the network that is randomised down to it; it is closed when the next is asked for.

        Raises:
            BundleError: The graphs cannot be written.
            BackendError: The runtime refused a graph.
        """
        for depth, block in enumerate(self.blocks, start=1):
            folder = self._folder / block
            if not folder.exists():
                # Here, not above: the exporter's libraries are needed for this alone.
                from engine.metrics.permute import write_permuted

                write_permuted(self.explainer.bundle, self.blocks[:depth], folder, self._seed)
            with self.explainer.with_graphs(folder) as explainer:
                yield block, explainer

    def compare(self, explained: Explained) -> list[Depth]:
        """Explain the image with each network; the other errors are those of `Explainer.explain`.

        Raises:
            OptionError: The explanation is of another explainer.
            BundleError: The graphs cannot be written.
        """
        if explained.explainer is not self.explainer:
            raise OptionError(
                f"cascade is of {self.explainer.bundle.path}, the explanation of {explained.explainer.bundle.path}; "
                "expected the same explainer: make one cascade for each"
            )
        depths = []
        for block, explainer in self.explainers():
            heatmap = explained.explain(explainer=explainer)
            depths.append(
                Depth(
                    block=block,
                    spearman=spearman(explained.heatmap, heatmap),
                    structural_similarity=structural_similarity(explained.heatmap, heatmap),
                )
            )
        return depths


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomisation:
    """Spearman's ρ between the heatmaps of the trained network and of randomised ones, as the mean over the cascade.

    A method whose heatmap stays alike, near 1, does not show what the network has learned.

    Attributes:
        seed: Chooses the permutations, unless the explanation brings its cascade.

    Raises:
        OptionError: The seed is no whole number of at least 0.

    Source: Adebayo et al., "Sanity checks for saliency maps" (arXiv 1810.03292), section 3.1, "cascading
        randomization".

    Departs: Weights are permuted, where the source draws them from the distribution of their initialisation, which a
        bundle does not know. Blocks of the bundle are randomised one after the other, in the source layers.
    """

    name: ClassVar[str] = "randomisation"
    title: ClassVar[str] = "Randomisation"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    needs_boxes: ClassVar[bool] = False
    cost: ClassVar[str] = "1 explanation per block, each with a network that is opened anew"

    seed: int = 0

    def __post_init__(self) -> None:
        expect_whole("seed", self.seed, least=0)

    def compute(self, explained: Explained) -> float | None:
        """Return the mean of ρ over all depths of the cascade."""
        if explained.cascade is not None:
            depths = explained.cascade.compare(explained)
        else:
            with Cascade(explained.explainer, self.seed) as cascade:
                depths = cascade.compare(explained)
        return float(np.mean([depth.spearman for depth in depths]))
