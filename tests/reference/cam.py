"""Class activation maps in float64, from the formulas of docs/methods.md.

The gradient-weighted maps are functions of feature maps A and gradients g, [K, h, w], which `maps_and_gradients` takes
from a network. Every function returns its map before the last step; `attribution.heatmap` makes a heatmap of it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .attribution import Logits
from .method import Activation, Decisions, Float, activate, interpolation_matrix, is_flat, masks
from .network import TorchNetwork

GAUSSIAN = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
"""Weights of the 3 x 3 cells round the one that Recipro-CAM keeps."""


def maps_and_gradients(
    network: TorchNetwork,
    image: NDArray[np.floating],
    target: int,
    layer: str,
    logits: str = "logits",
    decisions: Decisions | None = None,
) -> tuple[Float, Float]:
    """Feature maps A and d logit_target / d A of one layer, float64 [K, h, w], for one image [1, C, H, W]."""
    x = torch.tensor(image, dtype=torch.float64, requires_grad=True)
    tensors = network.run(x, [layer, logits], decisions=decisions)
    (gradient,) = torch.autograd.grad(tensors[logits][0, target], tensors[layer])
    return tensors[layer][0].detach().numpy(), gradient[0].numpy()


def grad_cam(a: Float, g: Float) -> Float:
    """ReLU(sum_k mean(g_k) A_k), [h, w]. Source: Selvaraju et al., arXiv 1610.02391, eq. 1 and 2."""
    return _weighted([float(g[k].mean()) for k in range(len(a))], a)


def grad_cam_plus_plus(a: Float, g: Float) -> Float:
    """ReLU(sum_k w_k A_k), w_k = sum_ij a_ij ReLU(g_ij), a_ij = g_ij^2 / (2 g_ij^2 + g_ij^3 sum_ab A_ab), [h, w].

    Source: Chattopadhay et al., arXiv 1710.11063, eq. 19.
    Departs: The factor exp(logit) of every weight is left out. a_ij is 0 where its denominator is.
    """
    weights = []
    for k in range(len(a)):
        total = float(a[k].sum())
        weight = 0.0
        for slope in g[k].ravel().tolist():
            denominator = 2 * slope**2 + total * slope**3
            if denominator != 0:
                weight += slope**2 / denominator * max(slope, 0.0)
        weights.append(weight)
    return _weighted(weights, a)


def xgrad_cam(a: Float, g: Float) -> Float:
    """ReLU(sum_k w_k A_k), w_k = sum_ij A_ij g_ij / sum_ab A_ab, or 0 where the map sums to 0, [h, w].

    Source: Fu et al., arXiv 2008.02312, eq. 8.
    """
    totals = [float(a[k].sum()) for k in range(len(a))]
    return _weighted([float((a[k] * g[k]).sum()) / t if t else 0.0 for k, t in enumerate(totals)], a)


def layer_cam(a: Float, g: Float) -> Float:
    """ReLU(sum_k ReLU(g_k) A_k), [h, w]. Source: Jiang et al., IEEE TIP 30 (2021), eq. 6 to 8."""
    return np.maximum(sum(np.maximum(g[k], 0) * a[k] for k in range(len(a))), 0)


def ablation_cam(a: Float, target: int, head: Logits) -> Float:
    """ReLU(sum_k (y - y_k) A_k), [h, w]: y the logit, y_k that without map k.

    Args:
        a: Feature maps [K, h, w].
        target: Class whose logit is compared.
        head: From feature maps [N, K, h, w] to logits.

    Source: Desai and Ramaswamy, WACV 2020, section 3.
    Departs: Not divided by y, a common factor that would turn the map over where it is negative.
    """
    whole = _scores(head, a[None], target, "none")[0]
    weights = []
    for k in range(len(a)):
        ablated = a.copy()
        ablated[k] = 0
        weights.append(float(whole - _scores(head, ablated[None], target, "none")[0]))
    return _weighted(weights, a)


def recipro_cam(a: Float, target: int, head: Logits, activation: Activation, *, gaussian: bool = True) -> Float:
    """Class score when the head sees only one cell, for every cell, [h, w].

    Args:
        a: Feature maps [K, h, w].
        target: Class that is scored.
        head: From feature maps [N, K, h, w] to logits.
        activation: What makes scores of logits.
        gaussian: Keep the cell's neighbours too, weighted by `GAUSSIAN`.

    Source: Byun and Lee, arXiv 2209.14074, section 3.
    """
    _, height, width = a.shape
    made = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            kept = np.zeros((height, width))
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if gaussian and 0 <= i + di < height and 0 <= j + dj < width:
                        kept[i + di, j + dj] = GAUSSIAN[1 + di, 1 + dj]
            if not gaussian:
                kept[i, j] = 1
            made[i, j] = _scores(head, (a * kept)[None], target, activation)[0]
    return made


def score_cam(
    image: ArrayLike,
    a: Float,
    target: int,
    logits: Logits,
    weights: Literal["softmax", "score"] = "softmax",
    activation: Activation = "softmax",
) -> Float:
    """ReLU(sum_k w_k A_k), w_k from the score of the image under the mask of map k, [h, w].

    Args:
        image: x [C, H, W].
        a: Feature maps [K, h, w].
        target: Class that is scored.
        logits: The classifier.
        weights: `softmax`: softmax over the maps of their logits; `score`: the class scores themselves.
        activation: What makes class scores of logits, for `score`.

    Source: Wang et al., arXiv 1910.01279, Algorithm 1; `score` as in the authors' code.
    Departs: The baseline's score, which cancels in the softmax, is not subtracted. Flat maps are left out.
    """
    x = np.asarray(image, dtype=np.float64)
    scored = [k for k in range(len(a)) if not is_flat(a[k])]
    m = masks(a, *x.shape[1:])
    kind: Activation = "none" if weights == "softmax" else activation
    s = np.array([_scores(logits, (m[k] * x)[None], target, kind)[0] for k in scored])
    if weights == "softmax" and scored:
        s = activate(s, "softmax")
    return _weighted(list(s), a[scored])


def group_cam(
    image: ArrayLike,
    blurred: ArrayLike,
    a: Float,
    g: Float,
    target: int,
    logits: Logits,
    activation: Activation,
    *,
    groups: int = 32,
    percentile: float = 70,
) -> Float:
    """ReLU(sum_l w_l M_l), w_l how far the score of x M_l + b (1 - M_l) exceeds that of b, [H, W].

    Args:
        image: x [C, H, W].
        blurred: b [C, H, W].
        a: Feature maps [K, h, w].
        g: Their gradients.
        target: Class that is scored.
        logits: The classifier.
        activation: What makes scores of logits.
        groups: How many groups of consecutive maps; at most K.
        percentile: Cells of a group's map that do not exceed this percentile become 0.

    Source: Zhang et al., arXiv 2103.13859, eq. 1 to 6.
    Departs: Groups differ by at most one map in size.
    """
    x, b = (np.asarray(array, dtype=np.float64) for array in (image, blurred))
    nothing = _scores(logits, b[None], target, activation)[0]
    total = np.zeros(x.shape[1:])
    for members in np.array_split(np.arange(len(a)), min(groups, len(a))):
        summed = np.maximum(sum(float(g[k].mean()) * a[k] for k in members), 0)
        kept = np.where(summed > np.percentile(summed, percentile), summed, 0)
        if is_flat(kept):
            continue
        mask = masks(kept[None], *x.shape[1:])[0]
        total += (_scores(logits, (x * mask + b * (1 - mask))[None], target, activation)[0] - nothing) * mask
    return np.maximum(total, 0)


def rise_mask(grid: ArrayLike, offset: tuple[int, int], size: tuple[int, int]) -> Float:
    """Mask [H, W] of a grid [s, s] of zeros and ones: upsampled by whole cells, then cropped at an offset.

    A cell has ceil(H/s) x ceil(W/s) pixels; the grid becomes s + 1 cells high and wide.

    Source: Petsiuk et al., arXiv 1806.07421, section 3.2; cells rounded up as in the authors' code.
    """
    cells = np.asarray(grid, dtype=np.float64)
    (height, width), (top, left) = size, offset
    tall, wide = -(-height // cells.shape[0]), -(-width // cells.shape[1])
    rows = interpolation_matrix(cells.shape[0], (cells.shape[0] + 1) * tall)
    columns = interpolation_matrix(cells.shape[1], (cells.shape[1] + 1) * wide)
    return np.asarray((rows @ cells @ columns.T)[top : top + height, left : left + width])


def rise(
    image: ArrayLike, rise_masks: ArrayLike, target: int, logits: Logits, activation: Activation, probability: float
) -> Float:
    """Sum of p_i M_i / (N E[M]), p_i the class score of x M_i, [H, W].

    Source: arXiv 1806.07421, eq. 6.
    """
    x, m = (np.asarray(array, dtype=np.float64) for array in (image, rise_masks))
    total = np.zeros(x.shape[1:])
    for mask in m:
        total += _scores(logits, (x * mask)[None], target, activation)[0] * mask
    return total / (len(m) * probability)


def _weighted(weights: list[float], a: Float) -> Float:
    total = np.zeros(a.shape[1:])
    for weight, feature_map in zip(weights, a, strict=True):
        total += weight * feature_map
    return np.maximum(total, 0)


def _scores(logits: Logits, batch: Float, target: int, activation: Activation) -> Float:
    with torch.no_grad():
        return activate(logits(torch.tensor(batch)).numpy(), activation)[:, target]
