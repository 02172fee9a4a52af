"""Extremal perturbation: the mask of a given area under which the class's logit is largest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import OptionError
from engine.image import blur
from engine.kernels import SmoothMask, scale_to_unit
from engine.methods.base import Attribution
from engine.options import expect_whole
from engine.probe import Probe
from engine.scoring import Write

Floats = NDArray[np.float32]

_LAST = 7  # level of the pyramid; the first is 0
_LARGEST_BLUR = 20.0
_LEARNING_RATE = 0.01
_MOMENTUM = 0.9
_WEIGHT = 300.0
_GROWTH = 1.0035
_MOST_ITERATIONS = 10_000  # the weight grows beyond all bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtremalPerturbation:
    """For each area, the smooth mask that leaves the largest logit; the heatmap is the sum of the masks.

    What a mask covers is blurred. Gradient ascent with momentum maximises the logit less a growing weight times the
    area term; nothing is random. `figures` has for every area what the mask covers in the end, `area_…`, and the logit
    of the last image that was computed, `reward_…`, as it was or mirrored.

    All masks, of all areas and classes, take a step in turn: a budget or a deadline takes the last steps off each.

    Attributes:
        areas: The shares of the mask, its margin included, that are to be kept.
        iterations: Steps of each mask.

    Raises:
        OptionError: An option has no meaning.

    Source: Fong et al., arXiv 1910.08485, sections 3.1 to 3.3; numbers as in the authors' TorchRay.
    Departs: Blurring renormalises at the border, where TorchRay darkens it. The mask is that of the parameters after
        the last step, where TorchRay returns the one before it.
    """

    name: ClassVar[str] = "extremal-perturbation"
    layered: ClassVar[bool] = False
    unit: ClassVar[str] = "steps"

    areas: Sequence[float] = (0.1,)
    iterations: int = 800

    def __post_init__(self) -> None:
        areas = self.areas if isinstance(self.areas, list | tuple) else ()
        if not areas or not all(isinstance(area, float | np.floating) and 0 < area < 1 for area in areas):
            raise OptionError(
                f"areas is {self.areas!r}; expected a list of numbers between 0 and 1, such as [0.05, 0.1]"
            )
        expect_whole("iterations", self.iterations)
        if self.iterations > _MOST_ITERATIONS:
            raise OptionError(f"iterations is {self.iterations}; expected at most {_MOST_ITERATIONS}")

    def explain(self, probe: Probe) -> list[Attribution]:
        """Explain every class of the probe, with a mask for each of its areas."""
        with probe.clock("blur"):
            perturbation = Perturbation(probe.image[0])
        ascents = [[Ascent(perturbation, area) for area in self.areas] for _ in probe.classes]
        each = probe.options.within_budget(self.iterations * len(self.areas))
        targets = np.tile(np.array(probe.classes), each)
        in_turn = [ascent for of_area in zip(*ascents, strict=True) for ascent in of_area]
        turns = _Turns(perturbation.shape, in_turn, len(targets))

        def keep(part: range, logits: Floats, gradients: Floats) -> None:
            turns.of(part).climb(float(logits[0, targets[part.start]]), gradients[0])

        probe.gradients(turns, targets, len(turns), keep, batch_size=1)
        with probe.clock("combine"):
            return [self._gather(own) for own in ascents]

    def _gather(self, ascents: Sequence["Ascent"]) -> Attribution:
        """Add up the masks of one class."""
        masks = [(ascent, ascent.mask()) for ascent in ascents if ascent.steps]
        figures = {f"area_{ascent.area}": float(mask.mean(dtype=np.float64)) for ascent, mask in masks}
        figures |= {f"reward_{ascent.area}": ascent.reward for ascent, _ in masks}
        total = np.sum([mask for ascent, mask in masks if ascent.led], axis=0, dtype=np.float64)
        return Attribution(
            heatmap=scale_to_unit(np.atleast_2d(total)),
            scored=sum(ascent.steps for ascent in ascents),
            scorable=self.iterations * len(ascents),
            figures=figures,
        )


class Perturbation:
    """The image, blurred the more the smaller the mask is, and the way back from its gradient to the mask's parameters.

    A pixel with mask value m is taken from level 7·m of eight, linearly between two, from a blur of 20 pixels to none.
    At a level the derivative is the one from above, and 0 at the last.

    Args:
        image: Network input x, float32 [C, H, W].
    """

    def __init__(self, image: Floats) -> None:
        self.shape: tuple[int, int, int] = (image.shape[0], image.shape[1], image.shape[2])
        self.smooth = SmoothMask(self.shape[1:])
        sigmas = [_LARGEST_BLUR * (1 - level / _LAST) for level in range(_LAST)]
        levels = np.stack([*(blur(image, sigma) for sigma in sigmas), image], axis=1)
        rises = np.diff(levels, axis=1, append=levels[:, -1:])
        self._levels, self._rises = (values.reshape(len(image), -1) for values in (levels, rises))
        self._pixels = np.arange(image[0].size)
        self._mask = np.empty(0, np.float32)
        self._rise = np.empty(0, np.float32)

    def make(self, parameters: Floats) -> Floats:
        """Return the image under the mask of these parameters, float32 [C, H, W]."""
        self._mask = self.smooth.make(parameters)
        position = _LAST * self._mask[self.smooth.inside].ravel()
        level = position.astype(np.int64)
        places = level * len(self._pixels) + self._pixels
        self._rise = self._rises.take(places, axis=1)
        made = self._levels.take(places, axis=1)
        made += self._rise * (position - level.astype(np.float32))
        return made.reshape(self.shape)

    def differentiate(self, gradient: Floats, area: float, weight: float) -> tuple[Floats, bool]:
        """Return the gradient of logit − weight·mean((sorted m − r)²) at the parameters of the image made last.

        r is 0 for the first int(n·(1 − area)) of the n pixels of the mask with its margin, and 1 for the others. Of
        pixels with equal values the first come first.

        Args:
            gradient: Of the logit at that image, float32 [C, H, W].
            area: The share of the mask that is to be kept.
            weight: Of the area term.

        Returns:
            float32 [h, w], and whether the logit has any part in it.
        """
        wanted = _largest(self._mask.ravel(), area).reshape(self._mask.shape)
        slope = (wanted - self._mask) * np.float32(2 * weight / self._mask.size)
        of_logit = _LAST * np.einsum("cp,cp->p", gradient.reshape(self._rise.shape), self._rise)
        slope[self.smooth.inside] += of_logit.reshape(self.shape[1:])
        return self.smooth.differentiate(slope), bool(of_logit.any())


class Ascent:
    """The search for the mask of one class and one area.

    Args:
        perturbation: Makes the images; several searches may share it, each from an image to its climb.
        area: The share of the mask that is to be kept.

    Attributes:
        area: As given.
        steps: How many were taken.
        reward: The logit at the last image.
        led: Whether the logit has had any part in the way that was taken.
    """

    def __init__(self, perturbation: Perturbation, area: float) -> None:
        self.area = float(area)
        self.steps = 0
        self.reward = math.nan
        self.led = False
        self._perturbation = perturbation
        self._parameters = np.ones(perturbation.smooth.grid, np.float32)
        self._speed: Floats | None = None

    def image(self) -> Floats:
        """Return the image under the mask so far, float32 [C, H, W]; it is mirrored in every second step."""
        return self._seen(self._perturbation.make(self._parameters))

    def climb(self, logit: float, gradient: Floats) -> None:
        """Take a step.

        Args:
            logit: Of the image made last.
            gradient: Its gradient there, float32 [C, H, W].
        """
        weight = _WEIGHT * _GROWTH**self.steps
        slope, led = self._perturbation.differentiate(self._seen(gradient), self.area, weight)
        self._speed = slope if self._speed is None else _MOMENTUM * self._speed + (1 - _MOMENTUM) * slope
        self._parameters = np.clip(self._parameters + _LEARNING_RATE * self._speed, 0.0, 1.0)
        self.reward, self.led, self.steps = logit, self.led or led, self.steps + 1

    def mask(self) -> Floats:
        """Return the mask over the image, float32 [H, W] from 0 to 1."""
        smooth = SmoothMask(self._perturbation.shape[1:])  # a run that a deadline left may still make an image
        return smooth.make(self._parameters)[smooth.inside]

    def _seen(self, image: Floats) -> Floats:
        return image[:, :, ::-1] if self.steps % 2 == 0 else image


class _Turns:
    """The images of searches that take turns: rows to differentiate, one at a time, for each depends on the last."""

    def __init__(self, shape: tuple[int, int, int], ascents: Sequence[Ascent], count: int) -> None:
        self.shape = shape
        self._ascents = ascents
        self._count = count

    def __len__(self) -> int:
        return self._count

    def of(self, part: range) -> Ascent:
        """Return the search whose turn it is."""
        return self._ascents[part.start % len(self._ascents)]

    def writer(self) -> Write:
        """Return a function that writes the image whose turn it is; see `engine.scoring.Rows`."""

        def write(part: range, batch: Floats) -> None:
            batch[0] = self.of(part).image()

        return write


def _largest(values: Floats, share: float) -> Floats:
    """Return 1 for so large a share of the largest values [n], and 0 for the others."""
    zeros = int(len(values) * (1 - share))
    if zeros == len(values):
        return np.zeros_like(values)
    least = np.partition(values, zeros)[zeros]
    found = values > least
    equal = np.flatnonzero(values == least)
    found[equal[len(equal) - (len(values) - zeros - int(found.sum())) :]] = True
    return np.asarray(found, np.float32)
