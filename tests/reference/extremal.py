"""Extremal perturbation in float64 torch, piece by piece, from docs/methods.md; gradients by autograd.

Source: Fong et al., arXiv 1910.08485, sections 3.1 to 3.3, with the numbers of the authors' TorchRay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .attribution import Logits
from .method import Float

COLDNESS = 20.0
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT, GROWTH = 300.0, 1.0035


def smooth_mask(parameters: Tensor, size: tuple[int, int], step: int = 7, sigma: float = 21) -> tuple[Tensor, Tensor]:
    """Mask of a grid of parameters by the smooth maximum of shifted kernels.

    Every output pixel looks at (2R + 1)^2 candidates of the grid, R = 1 + ceil(sigma/step); those beyond the grid
    have the value 0. Cell i lies at pixel sigma + step i.

    Args:
        parameters: q [ceil(H/step), ceil(W/step)].
        size: H, W.
        step: Pixels from cell to cell.
        sigma: Scale of the kernel, and width of the margin, in pixels.

    Returns:
        Mask [H, W], and the mask with its margin, of which the area is taken.
    """
    radius, padding = 1 + math.ceil(sigma / step), 1 + math.ceil(2 * sigma / step)
    seen, places = [], []
    for axis in (0, 1):
        middle = math.ceil(size[axis] / step) + 2 * padding - 2 * radius
        u = torch.arange(step * middle - step + 1, dtype=torch.float64)
        cells = torch.arange(parameters.shape[axis], dtype=torch.float64)
        first = torch.floor(u / step) - padding
        seen.append((cells[None] >= first[:, None]) & (cells[None] <= first[:, None] + 2 * radius))
        places.append((u[:, None] - (sigma + step * cells[None])) ** 2)
    top = torch.zeros(len(seen[0]), len(seen[1]), dtype=torch.float64)
    bottom = top + (2 * radius + 1) ** 2  # every candidate counts exp(0) until it is found in the grid
    for i in range(parameters.shape[0]):
        for j in range(parameters.shape[1]):
            distance = torch.sqrt(places[0][:, i, None] + places[1][None, :, j])
            value = torch.exp(-2 * torch.clamp(distance / sigma - 0.5, min=0) ** 2) * parameters[i, j]
            candidate = seen[0][:, i, None] & seen[1][None, :, j]
            power = torch.exp(COLDNESS * value)
            top = top + torch.where(candidate, value * power, 0.0)
            bottom = bottom + torch.where(candidate, power - 1, 0.0)
    whole = torch.clamp(top / bottom, 0, 1)
    margin = round(sigma)
    return whole[margin : margin + size[0], margin : margin + size[1]], whole


def area_term(whole: Tensor, area: float) -> Tensor:
    """Mean squared distance of the sorted mask to zeros, then ones on a share `area` of all pixels."""
    values = whole.reshape(-1).sort(stable=True).values
    wanted = torch.ones_like(values)
    wanted[: int(len(values) * (1 - area))] = 0
    return ((values - wanted) ** 2).mean()


def blur(image: ArrayLike, sigma: float) -> Float:
    """Image [C, H, W] under a Gaussian; weights that would fall beyond the border are shared out within."""
    x = np.asarray(image, dtype=np.float64)
    if sigma == 0:
        return x
    matrices = []
    for size in x.shape[1:]:
        distance = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
        weights = np.exp(-(distance**2) / 2)
        matrices.append(weights / weights.sum(axis=1, keepdims=True))
    return np.asarray(matrices[0] @ x @ matrices[1].T)


def blur_pyramid(image: ArrayLike, levels: int = 8, largest: float = 20) -> Tensor:
    """Images [levels, C, H, W] from the most blurred to the image itself."""
    return torch.tensor(np.stack([blur(image, largest * (1 - level / (levels - 1))) for level in range(levels)]))


def perturb(pyramid: Tensor, mask: Tensor) -> Tensor:
    """Image [C, H, W] whose pixels come from level mask * (levels - 1), linearly between the levels.

    At a level the derivative is the one from above, and 0 at the last: the unblurred image cannot get sharper.
    """
    levels, channels = pyramid.shape[:2]
    position = mask * (levels - 1)
    below = position.detach().floor().long()
    above = torch.clamp(below + 1, max=levels - 1)
    share = position - below
    low, high = (pyramid.gather(0, k.expand(1, channels, *k.shape))[0] for k in (below, above))
    return (1 - share) * low + share * high


def objective(
    parameters: Tensor, pyramid: Tensor, logits: Logits, target: int, area: float, weight: float, *, mirrored: bool
) -> Tensor:
    """What the optimiser maximises: logit(perturbed image) - weight * area term."""
    mask, whole = smooth_mask(parameters, (pyramid.shape[2], pyramid.shape[3]))
    x = perturb(pyramid, mask)
    seen = x.flip(2) if mirrored else x
    return logits(seen[None])[0, target] - weight * area_term(whole, area)


def extremal_perturbation(
    pyramid: Tensor, target: int, logits: Logits, areas: Sequence[float] = (0.1,), iterations: int = 800
) -> list[tuple[Float, Float]]:
    """For each area, the parameters after so many steps of torch's SGD, and the mask [H, W] that they make."""
    height, width = pyramid.shape[2:]
    results = []
    for area in areas:
        parameters = torch.ones(math.ceil(height / 7), math.ceil(width / 7), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([parameters], lr=LEARNING_RATE, momentum=MOMENTUM, dampening=MOMENTUM)
        for t in range(iterations):
            optimizer.zero_grad()
            weight = WEIGHT * GROWTH**t
            (-objective(parameters, pyramid, logits, target, area, weight, mirrored=t % 2 == 0)).backward()
            optimizer.step()
            with torch.no_grad():
                parameters.clamp_(0, 1)
        with torch.no_grad():
            results.append((parameters.detach().numpy().copy(), smooth_mask(parameters, (height, width))[0].numpy()))
    return results
