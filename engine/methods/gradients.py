"""Methods that read the gradient of a class's logit at the input: at the image, around it, and on the way to it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.image import Baseline
from engine.kernels import scale_to_unit
from engine.methods.base import Attribution, Map
from engine.options import expect_number, expect_whole
from engine.probe import Probe
from engine.scoring import Write, finite

Floats = NDArray[np.float32]
Sums = NDArray[np.float64]

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """The gradient of the logit at the image; the heatmap is its largest magnitude over the channels.

    The attribution is the signed gradient. A budget and a deadline leave nothing out.

    Source: Simonyan et al., arXiv 1312.6034, section 3.1.
    """

    name: ClassVar[str] = "gradient"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "runs"

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        classes = probe.classes
        with probe.clock("gradient"):
            gradients = [finite(probe.run("gradient", [probe.image, np.array([index])])[1])[0] for index in classes]
        return [Attribution(heatmap=_strongest(gradient), attribution=gradient) for gradient in gradients]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothGrad:
    """The mean gradient at copies of the image with noise; the heatmap is its largest magnitude over the channels.

    The attribution is the signed mean. The noise of sample i is drawn by a generator of its own, which NumPy seeds with
    [seed, i]: it is the same for every class, and does not change with the number of samples.

    Attributes:
        samples: How many copies.
        noise: Standard deviation of the noise, as a share of the input's maximum less its minimum.
        seed: Of the noise.

    Raises:
        OptionError: An option has no meaning.

    Source: Smilkov et al., arXiv 1706.03825, section 3.
    Departs: The signed gradients are averaged, as in the authors' code; the paper leaves it open.
    """

    name: ClassVar[str] = "smooth-grad"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "samples"

    samples: int = 50
    noise: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        expect_whole("samples", self.samples)
        expect_number("noise", self.noise, lambda noise: 0 <= noise < np.inf, "of at least 0")
        expect_whole("seed", self.seed, 0)

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with the same noise."""
        image = probe.image[0]
        deviation = np.float32(self.noise * np.ptp(image))

        def noisy(sample: int) -> Floats:
            generator = np.random.default_rng([self.seed, sample])
            return np.asarray(image + deviation * generator.standard_normal(image.shape, np.float32))

        found = []
        for total, count in _summed(probe, noisy, probe.options.within_budget(self.samples)):
            mean = (total / max(count, 1)).astype(np.float32)
            found.append(Attribution(heatmap=_strongest(mean), attribution=mean, scored=count, scorable=self.samples))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients:
    """The image less the baseline, times the mean gradient on the straight way from one to the other.

    The heatmap is the sum of the attribution's magnitudes over the channels. `figures` has the completeness of the
    attribution, whose sum should be the logit of the image less that of the baseline; see `completeness`.

    A budget makes fewer, longer steps. The steps are taken in an order of which every beginning is spread over the
    whole way, so that a deadline leaves an estimate as well.

    Attributes:
        steps: How many gradients are taken on the way.
        baseline: Where the way begins: `zero` in the network's input space, `blur`, or a colour (r, g, b).

    Raises:
        OptionError: An option has no meaning.

    Source: Sundararajan et al., arXiv 1703.01365, section 3, eq. 1 and 3, proposition 1.
    Departs: Midpoints of the steps, whose error falls with the square of their number, where eq. 3 has their ends.
    """

    name: ClassVar[str] = "integrated-gradients"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "steps"

    steps: int = 50
    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        expect_whole("steps", self.steps)

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe."""
        start = probe.baseline(self.baseline)
        start = np.zeros_like(probe.image[0]) if start is None else start
        way = probe.image[0].astype(np.float64) - start
        rises = (probe.logits - finite(probe.run("forward", [start[None]])[0]))[0, probe.classes]
        steps = probe.options.within_budget(self.steps)
        order = spread_order(steps)

        def midpoint(number: int) -> Floats:
            return np.asarray(start + (order[number] + 0.5) / steps * way, np.float32)

        found = []
        for (total, count), rise in zip(_summed(probe, midpoint, steps), rises, strict=True):
            attribution = way * total / max(count, 1)
            found.append(
                Attribution(
                    heatmap=scale_to_unit(np.abs(attribution).sum(axis=0)),
                    attribution=attribution.astype(np.float32),
                    scored=count,
                    scorable=self.steps,
                    figures=completeness(float(attribution.sum()), float(rise)),
                )
            )
        return found


def completeness(total: float, expected: float) -> dict[str, float]:
    """Return by how much a sum of contributions misses what it should be.

    Returns:
        `completeness_gap`, the sum less what is expected, in logits; `completeness_error`, its magnitude as a share of
        the magnitude of what is expected.
    """
    gap = total - expected
    return {"completeness_error": abs(gap) / max(abs(expected), _TINY), "completeness_gap": gap}


def spread_order(count: int) -> list[int]:
    """Return the numbers from 0 below `count` in an order of which every beginning is spread evenly over all.

    Number i is in the part of 0 … 1 that van der Corput's sequence 1/2, 1/4, 3/4, 1/8, 5/8, … reaches next.
    """
    bits = count.bit_length()
    mirrored = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1, 1 << bits))
    return list(dict.fromkeys(place * count >> bits for place in mirrored))


def _summed(probe: Probe, make: Callable[[int], Floats], count: int) -> Iterator[tuple[Sums, int]]:
    """Sum the gradients of every class's logit at changed images, in their order.

    Args:
        probe: The image and its classes.
        make: Makes the changed image [C, H, W] of a number from 0.
        count: How many changed images there are.

    Yields:
        For each class the sum, float64 [C, H, W], and how many images are in it: a deadline may leave the last out.
    """
    classes = probe.classes
    sums = np.zeros((len(classes), *probe.image.shape[1:]))

    def keep(part: range, _logits: Floats, gradients: Floats) -> None:
        for number, gradient in zip(part, gradients, strict=True):
            sums[number % len(classes)] += gradient

    rows = _Shared(probe.image[0].shape, make, count, len(classes))
    done = probe.gradients(rows, np.tile(np.array(classes), count), len(rows), keep)
    for k, total in enumerate(sums):
        yield total, len(range(k, done, len(classes)))


class _Shared:
    """Changed images, each as many times in succession as there are classes: rows to differentiate."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[int], Floats], count: int, classes: int) -> None:
        self.shape = (shape[0], shape[1], shape[2])
        self._make = make
        self._count = count
        self._classes = classes

    def __len__(self) -> int:
        return self._count * self._classes

    def writer(self) -> Write:
        """Return a function that writes changed images; see `engine.scoring.Rows`."""
        make = lru_cache(maxsize=1)(self._make)

        def write(part: range, batch: Floats) -> None:
            for row, number in enumerate(part):
                batch[row] = make(number // self._classes)

        return write


def _strongest(attribution: Floats) -> Map | None:
    """Make a heatmap of the largest magnitude over the channels; None when it is constant."""
    return scale_to_unit(np.abs(attribution).max(axis=0).astype(np.float64))
