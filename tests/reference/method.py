"""Ada-SISE in float64, one formula at a time: the slow replica that the engine is compared with.

Source: SISE, arXiv 2010.00672; Ada-SISE, arXiv 2102.07799; where they leave a choice, design.md section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import fsum
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .network import TorchNetwork

Float = NDArray[np.float64]
Decisions = Mapping[str, NDArray[np.floating]]
Activation = Literal["softmax", "sigmoid", "none"]
Rule = Literal["otsu", "otsu-count", "positive", "all"]
Fusion = Literal["hard", "soft"]

FLAT_FEATURE_MAP = 1e-6
"""A feature map is flat when max - min is at most this part of max |F_k| (design.md, 3.3)."""
CONSTANT = 1e-12
"""A visualization map or heatmap is flat when max - min is at most this part of its largest magnitude."""
EQUAL_TAU = 1e-12
"""Values of tau that differ by at most this part of the largest count as equal (design.md, 3.2)."""


def activate(logits: ArrayLike, activation: Activation) -> Float:
    """Class scores from logits [..., classes], in float64."""
    z = np.asarray(logits, dtype=np.float64)
    if activation == "softmax":
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))
    if activation == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0.0, -z)))
    if activation == "none":
        return z
    raise ValueError(f"activation: received '{activation}', expected 'softmax', 'sigmoid' or 'none'")


def average_gradients(
    network: TorchNetwork,
    image: NDArray[np.floating],
    target: int,
    layers: Sequence[str],
    logits: str,
    decisions: Decisions | None = None,
) -> list[Float]:
    """Average gradients alpha_k = sum over h, w of d logit_target / d F_k(h, w), one array [C_l] a layer.

    Args:
        network: The classifier.
        image: Network input [1, C, H, W].
        target: Class whose logit is differentiated.
        layers: Names of the feature layers' tensors [1, C_l, h, w].
        logits: Name of the tensor of logits [1, classes].
        decisions: Values of a float32 run, see `TorchNetwork.run`; None for plain float64.
    """
    _expect_one_image(image)
    x = torch.tensor(image, dtype=torch.float64, requires_grad=True)
    tensors = network.run(x, [*layers, logits], decisions=decisions)
    gradients = torch.autograd.grad(tensors[logits][0, target], [tensors[layer] for layer in layers])
    return [gradient[0].sum(dim=(1, 2)).numpy() for gradient in gradients]


def feature_maps(
    network: TorchNetwork,
    image: NDArray[np.floating],
    layers: Sequence[str],
    decisions: Decisions | None = None,
) -> list[Float]:
    """Feature maps F_k of each layer, float64 [C_l, h, w]."""
    _expect_one_image(image)
    with torch.no_grad():
        tensors = network.run(image, list(layers), decisions=decisions)
    return [tensors[layer][0].numpy() for layer in layers]


def otsu_split(values: ArrayLike) -> tuple[int, Float]:
    """Otsu split of sorted values without a histogram.

    tau(i) = (i/n) ((n-i)/n) (mean of values i+1..n - mean of values 1..i)^2; i* is the smallest i in
    1..n-1 whose tau is within 1e-12 relative of the largest. Sums are rounded once (math.fsum).

    Args:
        values: At least two values in ascending order.

    Returns:
        i* (size of the lower class) and tau [n-1], tau(i) at index i-1.

    Source: Ada-SISE, adaptive selection of feature maps; design.md 3.2.
    """
    v = [float(value) for value in np.asarray(values, dtype=np.float64)]
    n = len(v)
    if n < 2 or v != sorted(v):
        raise ValueError(f"otsu_split: received {n} values, expected two or more in ascending order")
    tau = np.empty(n - 1)
    for i in range(1, n):
        difference = fsum(v[i:]) / (n - i) - fsum(v[:i]) / i
        tau[i - 1] = (i / n) * ((n - i) / n) * difference**2
    largest = tau.max()
    i_star = next(i for i in range(1, n) if largest - tau[i - 1] <= EQUAL_TAU * largest)
    return i_star, tau


def select(alpha: ArrayLike, rule: Rule = "otsu", mu: float = 0.0) -> NDArray[np.int64]:
    """Channels that a rule keeps, in ascending order of index; empty when no gradient is positive.

    Args:
        alpha: Average gradients [C_l], finite.
        rule: `otsu` keeps the n - i* largest positive gradients, `otsu-count` the i* largest, `positive`
            those above mu * max(alpha), `all` every channel, positive or not.
        mu: Only for `positive`; 0 keeps every positive gradient.
    """
    a = np.asarray(alpha, dtype=np.float64)
    if a.ndim != 1 or not np.isfinite(a).all():
        raise ValueError(f"alpha: received shape {a.shape}, expected one axis of finite values")
    if rule == "all":
        return np.arange(len(a))
    positive = [k for k in range(len(a)) if a[k] > 0]
    if rule == "positive":
        return np.array([k for k in positive if a[k] > mu * a.max()], dtype=np.int64)
    if rule not in ("otsu", "otsu-count"):
        raise ValueError(f"rule: received '{rule}', expected 'otsu', 'otsu-count', 'positive' or 'all'")
    strongest = sorted(positive, key=lambda k: (-a[k], k))
    n = len(strongest)
    if n <= 1 or a[strongest[0]] == a[strongest[-1]]:
        return np.array(positive, dtype=np.int64)
    i_star, _ = otsu_split(a[strongest[::-1]])
    count = n - i_star if rule == "otsu" else i_star
    return np.array(sorted(strongest[:count]), dtype=np.int64)


def is_flat(feature_map: NDArray[np.floating]) -> bool:
    """Whether a feature map [h, w] is too even to make a mask: max - min <= 1e-6 max |F_k|, in float64."""
    f = np.asarray(feature_map, dtype=np.float64)
    return bool(f.max() - f.min() <= FLAT_FEATURE_MAP * np.abs(f).max())


def interpolation_matrix(source: int, target: int) -> Float:
    """Linear interpolation along one axis as a matrix [target, source], half-pixel centres.

    Target cell i has its centre at (i + 1/2) source/target - 1/2, clamped to the first and last source cell.
    """
    matrix = np.zeros((target, source))
    for i in range(target):
        position = min(max((i + 0.5) * source / target - 0.5, 0.0), source - 1.0)
        left = int(position)
        weight = position - left
        matrix[i, left] += 1 - weight
        matrix[i, min(left + 1, source - 1)] += weight
    return matrix


def upsample(maps: NDArray[np.floating], height: int, width: int) -> Float:
    """Bilinear resize of maps [C, h, w] to [C, height, width] with half-pixel centres."""
    # Products in torch: NumPy's own threads, spinning beside torch's, halve the speed of score_masks.
    f = torch.from_numpy(np.array(maps, dtype=np.float64))
    rows = torch.from_numpy(interpolation_matrix(f.shape[1], height))
    columns = torch.from_numpy(interpolation_matrix(f.shape[2], width))
    return np.asarray((rows @ (f @ columns.T)).numpy())


def masks(maps: NDArray[np.floating], height: int, width: int) -> Float:
    """Attribution masks m_k = (M_k - min)/(max - min) of feature maps [K, h, w]; a flat map gives zeros."""
    made = np.zeros((len(maps), height, width))
    for k, m in enumerate(upsample(maps, height, width)):
        if not is_flat(maps[k]):
            made[k] = (m - m.min()) / (m.max() - m.min())
    return made


def score_masks(
    network: TorchNetwork,
    x: NDArray[np.float32],
    maps: NDArray[np.floating],
    baseline: ArrayLike = 0.0,
    activation: Activation = "softmax",
    logits: str = "logits",
    *,
    dtype: torch.dtype = torch.float32,
    batch: int = 8,
) -> Float:
    """Scores of every class for the masked inputs x m_k + baseline (1 - m_k).

    Args:
        network: The classifier.
        x: Network input [1, C, H, W].
        maps: Feature maps [K, h, w]; their masks are made batch by batch.
        baseline: What replaces the hidden part, broadcastable to [C, H, W], in normalised input space.
        activation: What makes scores of logits.
        logits: Name of the tensor of logits [N, classes].
        dtype: Type of the masked input and of the network's pass. Masks and activation are float64.
        batch: Images in one pass. On two CPU cores 8 is 1.4 times as fast as 32 (less memory traffic).

    Returns:
        Scores float64 [K, classes]; NaN for flat maps, which are not scored.
    """
    _expect_one_image(x)
    height, width = x.shape[2:]
    image = torch.from_numpy(np.array(x[0])).to(dtype)
    hidden = torch.from_numpy(np.broadcast_to(np.asarray(baseline, dtype=np.float64), image.shape).copy()).to(dtype)
    scored = np.array([k for k in range(len(maps)) if not is_flat(maps[k])], dtype=np.int64)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(scored), batch):
            made = masks(maps[scored[start : start + batch]], height, width)
            m = torch.from_numpy(made).to(dtype)[:, None]
            masked = (image * m + hidden * (1 - m)).contiguous(memory_format=torch.channels_last)
            rows.append(activate(network.run(masked, [logits], dtype=dtype)[logits].numpy(), activation))
    if not rows:
        classes = network.run(x, [logits], dtype=dtype)[logits].shape[1]
        return np.full((len(maps), classes), np.nan)
    scores = np.full((len(maps), rows[0].shape[1]), np.nan)
    scores[scored] = np.concatenate(rows)
    return scores


def raw_visualization_map(
    scores: ArrayLike, maps: NDArray[np.floating], height: int, width: int, *, batch: int = 64
) -> Float | None:
    """Sum of p_k m_k / ||m_k||_1 before the min-max; None when no map can be scored.

    Args:
        scores: p_k, the target class's scores [K]; those of flat maps are not read.
        maps: Feature maps [K, h, w] of one layer.
        height: Height of the network input.
        width: Width of the network input.
        batch: Masks in memory at once.
    """
    p = np.asarray(scores, dtype=np.float64)
    if p.shape != (len(maps),):
        raise ValueError(f"scores: received shape {p.shape}, expected ({len(maps)},), one score a map")
    scored = np.array([k for k in range(len(maps)) if not is_flat(maps[k])], dtype=np.int64)
    if np.isnan(p[scored]).any():
        raise ValueError(f"scores: NaN for the maps {scored[np.isnan(p[scored])]}, which are not flat")
    total = np.zeros((height, width))
    for start in range(0, len(scored), batch):
        chosen = scored[start : start + batch]
        m = masks(maps[chosen], height, width)
        total += np.tensordot(p[chosen] / m.sum(axis=(1, 2)), m, axes=1)
    return total if len(scored) else None


def visualization_map(
    scores: ArrayLike, maps: NDArray[np.floating], height: int, width: int, *, batch: int = 64
) -> Float | None:
    """Visualization map V_l in [0, 1], [height, width]; None when no mask was scored or V_l is flat.

    Arguments as `raw_visualization_map`. Flat means max - min <= 1e-12 max |V_l|.
    """
    raw = raw_visualization_map(scores, maps, height, width, batch=batch)
    return None if raw is None or is_constant(raw) else min_max(raw)


def is_constant(values: Float) -> bool:
    """Whether a visualization map or heatmap is flat: max - min <= 1e-12 times its largest magnitude."""
    return bool(values.max() - values.min() <= CONSTANT * np.abs(values).max())


def min_max(values: Float) -> Float:
    """Values scaled to [0, 1]."""
    return np.asarray((values - values.min()) / (values.max() - values.min()))


def between_class_variances(values: Float) -> tuple[Float, list[Fraction]]:
    """Between-class variance of every split of a map's histogram, exact.

    The histogram has 256 equal bins over [min, max], as numpy.histogram. Split b puts the bins 0..b in the
    lower class and b+1..255 in the upper one: variance(b) = w0 w1 (mu0 - mu1)^2 with the classes' shares w of
    the pixels and means mu of the bin numbers (bin centres, shifted and scaled); 0 when a class is empty.

    Returns:
        Centres of the bins [256] and the variances of b = 0..254 in units of (bin width)^2.
    """
    counts, edges = np.histogram(values, bins=256, range=(float(values.min()), float(values.max())))
    c = [int(count) for count in counts]
    n = sum(c)
    variances = []
    for b in range(255):
        n0, n1 = sum(c[: b + 1]), sum(c[b + 1 :])
        sum0 = sum(j * c[j] for j in range(b + 1))
        sum1 = sum(j * c[j] for j in range(b + 1, 256))
        apart = Fraction(sum1, n1) - Fraction(sum0, n0) if n0 and n1 else Fraction(0)
        variances.append(Fraction(n0, n) * Fraction(n1, n) * apart**2)
    return (edges[:-1] + edges[1:]) / 2, variances


def otsu_threshold(values: Float) -> float:
    """Otsu threshold: centre of the first bin b that maximises the between-class variance of <= b and > b."""
    centres, variances = between_class_variances(values)
    return float(centres[variances.index(max(variances))])


def soft_threshold(values: Float) -> float:
    """1.5 otsu if fewer than a tenth of the pixels exceed 1.5 otsu, else otsu."""
    otsu = otsu_threshold(values)
    exceed = int((values > 1.5 * otsu).sum())
    return 1.5 * otsu if 10 * exceed < values.size else otsu


def fuse(
    maps: Sequence[Float | None],
    mode: Fusion = "hard",
    *,
    size: tuple[int, int] | None = None,
    thresholds: Sequence[float | None] | None = None,
) -> tuple[Float, list[float | None]]:
    """Fusion of visualization maps from shallow to deep: E_l = (E_{l-1} + V_l) [V_l > t_l], then min-max.

    Args:
        maps: V_l in [0, 1], [H, W]; None for a layer that is skipped.
        mode: `hard` as above; `soft` has sigmoid(100 (V_l - t_l)) for the bracket, t_l by `soft_threshold`.
        size: H, W of the result when every map is None.
        thresholds: Thresholds to use; those that are None are computed.

    Returns:
        Heatmap [H, W] in [0, 1], all zeros when everything was cut away, flat or skipped; and the thresholds
        t_l that were applied, None for the layer with which E starts and for skipped layers.

    Source: SISE, fusion module; design.md 3.5.
    """
    if mode not in ("hard", "soft"):
        raise ValueError(f"mode: received '{mode}', expected 'hard' or 'soft'")
    fused: Float | None = None
    applied: list[float | None] = [None] * len(maps)
    for layer, v in enumerate(maps):
        if v is None:
            continue
        if fused is None:
            fused = v
            continue
        given = None if thresholds is None else thresholds[layer]
        t = given if given is not None else (otsu_threshold(v) if mode == "hard" else soft_threshold(v))
        kept = (v > t).astype(np.float64) if mode == "hard" else activate((v - t) * 100.0, "sigmoid")
        fused = (fused + v) * kept
        applied[layer] = t
    if fused is None:
        if size is None:
            raise ValueError("fuse: every layer is skipped; pass `size` for the heatmap of zeros")
        return np.zeros(size), applied
    return np.zeros_like(fused) if is_constant(fused) else min_max(fused), applied


def _expect_one_image(image: NDArray[np.floating]) -> None:
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"image: received shape {image.shape}, expected (1, C, H, W)")
