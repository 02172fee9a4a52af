"""What "equal to the reference" means: the assertions of design.md, section 3, Agreement (b), (d) and (e).

Each helper raises an AssertionError that shows the figures, and returns the figure it judged, so that a test
can report it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .method import Float, between_class_variances

ALPHA = 1e-5
SCORES = 1e-4
VISUALIZATION_MAP = 1e-4
HEATMAP_MEAN = 1e-4
HEATMAP_MAX = 1e-3
NEAR_THRESHOLD = 1e-4
NEAR_THRESHOLD_SHARE = 0.005


def assert_alpha(
    engine_alpha: Sequence[ArrayLike], reference_alpha: Sequence[ArrayLike], bound: float = ALPHA
) -> float:
    """(b) Average gradients of each layer: relative L2 distance at most 1e-5.

    Args:
        engine_alpha: The engine's average gradients, one array [C_l] a layer.
        reference_alpha: float64 gradients with the float32 run's decisions.
        bound: Another bound than 1e-5.

    Returns:
        The largest distance.
    """
    _expect(
        len(engine_alpha) == len(reference_alpha),
        f"alpha: {len(engine_alpha)} != {len(reference_alpha)} layers",
    )
    distances = []
    for layer, (engine, reference) in enumerate(zip(engine_alpha, reference_alpha, strict=True), start=1):
        e, r = _pair(f"alpha of layer {layer}", engine, reference)
        norm = float(np.linalg.norm(r))
        distance = float(np.linalg.norm(e - r))
        distances.append(distance / norm if norm else (0.0 if distance == 0 else np.inf))
        worst = int(np.abs(e - r).argmax())
        _expect(
            distances[-1] <= bound,
            f"alpha of layer {layer}: relative L2 {distances[-1]:.3e} > {bound:.0e} (norm {norm:.3e}; "
            f"worst channel {worst}: {e[worst]:.9g}, reference {r[worst]:.9g})",
        )
    return max(distances)


def assert_scores(engine: ArrayLike, reference: ArrayLike) -> float:
    """(d) Scores of any shape: largest difference at most 1e-4, NaN (not scored) at the same places."""
    return _assert_close("scores", engine, reference, SCORES)


def assert_visualization_map(engine: ArrayLike | None, reference: ArrayLike | None) -> float:
    """(d) One V_l in [0, 1]: largest difference at most 1e-4. None (skipped) only agrees with None."""
    if engine is None or reference is None:
        shown = "none" if engine is None else "a map", "none" if reference is None else "a map"
        _expect(engine is reference, f"visualization map: {shown[0]}, reference {shown[1]}")
        return 0.0
    return _assert_close("visualization map", engine, reference, VISUALIZATION_MAP)


def assert_threshold(engine_threshold: float, reference_map: Float, slack: float = 1e-4) -> float:
    """A threshold of the engine: the centre of a bin whose between-class variance is the largest, nearly.

    Not part of the Agreement, but it explains a heatmap that differs: pixels of V_l cross a bin's edge by
    rounding, and where two bins are all but equal the maximum then moves. (Pass the engine's thresholds to
    `method.fuse` to compare the rest.)

    Args:
        engine_threshold: t_l.
        reference_map: V_l of the reference.
        slack: Allowed distance to the largest variance, relative.

    Returns:
        The distance to the largest variance, relative.
    """
    centres, variances = between_class_variances(reference_map)
    b = int(np.abs(centres[:-1] - engine_threshold).argmin())
    off = abs(float(centres[b]) - engine_threshold)
    lost = float(1 - variances[b] / max(variances))
    _expect(
        off <= VISUALIZATION_MAP and lost <= slack,
        f"threshold {engine_threshold:.6f}: {off:.1e} from the centre of bin {b} (allowed "
        f"{VISUALIZATION_MAP:.0e}), whose variance is {lost:.1e} below the largest (allowed {slack:.0e}), "
        f"which is at bin {variances.index(max(variances))}",
    )
    return lost


def assert_heatmap(
    engine: ArrayLike,
    reference: ArrayLike,
    reference_maps: Sequence[Float | None],
    thresholds: Sequence[float | None],
) -> tuple[float, float]:
    """(e) Heatmap: mean difference at most 1e-4, largest at most 1e-3 outside pixels near a threshold.

    Args:
        engine: The engine's heatmap [H, W].
        reference: The reference's heatmap.
        reference_maps: V_l of the reference, None for skipped layers.
        thresholds: t_l as `method.fuse` returns them, None where none was applied. Near means
            |V_l - t_l| <= 1e-4 for some l; at most 0.5 % of the pixels may be.

    Returns:
        The mean difference, and the largest outside pixels near a threshold.
    """
    e, r = _pair("heatmap", engine, reference)
    near: NDArray[np.bool_] = np.zeros(r.shape, dtype=bool)
    for v, t in zip(reference_maps, thresholds, strict=True):
        if v is not None and t is not None:
            near |= np.abs(v - t) <= NEAR_THRESHOLD
    share = float(near.mean())
    difference = np.abs(e - r)
    mean = float(difference.mean())
    largest = float(difference[~near].max(initial=0.0))
    beyond = int((difference[~near] > HEATMAP_MAX).sum())
    figures = (
        f"mean difference {mean:.3e} (allowed {HEATMAP_MEAN:.0e}), largest {largest:.3e} (allowed "
        f"{HEATMAP_MAX:.0e}, {beyond} pixels beyond) outside the {share:.3%} of pixels near a threshold "
        f"(allowed {NEAR_THRESHOLD_SHARE:.1%}), where it is {difference[near].max(initial=0.0):.3e}; "
        f"thresholds {list(thresholds)}"
    )
    agreed = mean <= HEATMAP_MEAN and largest <= HEATMAP_MAX and share <= NEAR_THRESHOLD_SHARE
    _expect(agreed, f"heatmap: {figures}")
    return mean, largest


def assert_proves_something(
    logits: ArrayLike, alphas: Sequence[ArrayLike], scores: ArrayLike, *, trained: bool = False
) -> None:
    """Whether a network and an input can show a fault at all: neither dead nor saturated.

    Args:
        logits: Logits of the image.
        alphas: Average gradients, one array a layer.
        scores: The target class's scores of all masks [K]; NaN (not scored) is left out.
        trained: The weights are trained: the logits may be larger than 20.
    """
    largest = float(np.abs(np.asarray(logits, dtype=np.float64)).max())
    in_range = largest >= 0.1 and (trained or largest <= 20)
    allowed = "at least 0.1" if trained else "0.1 to 20"
    _expect(in_range, f"proves nothing: max |logit| is {largest:.3e}, expected {allowed}")
    strengths = [float(np.abs(np.asarray(alpha, dtype=np.float64)).max()) for alpha in alphas]
    dead = [layer for layer, strength in enumerate(strengths, start=1) if not strength > 0]
    _expect(
        bool(strengths) and not dead,
        f"proves nothing: alpha is zero in the layers {dead}, max |alpha| {strengths}",
    )
    p = np.asarray(scores, dtype=np.float64)
    _expect(
        p.ndim == 1,
        f"scores: received shape {p.shape}, expected one axis, the target class's score of each mask",
    )
    p = p[~np.isnan(p)]
    spread = float(p.std()) if len(p) else 0.0
    _expect(
        spread > 0.01,
        f"proves nothing: the {len(p)} scores' standard deviation is {spread:.3e}, expected > 0.01",
    )


def _assert_close(what: str, engine: ArrayLike, reference: ArrayLike, tolerance: float) -> float:
    e, r = _pair(what, engine, reference)
    missing = int((np.isnan(e) != np.isnan(r)).sum())
    _expect(missing == 0, f"{what}: {missing} of {r.size} are NaN on one side only")
    difference = np.where(np.isnan(r), 0.0, np.abs(e - r))
    largest = float(difference.max(initial=0.0))
    if not largest <= tolerance:
        at = np.unravel_index(int(difference.argmax()), difference.shape)
        place = tuple(int(index) for index in at)
        beyond = int((difference > tolerance).sum())
        raise AssertionError(
            f"{what}: largest difference {largest:.3e} > {tolerance:.0e} at {place} ({e[at]:.9g}, reference "
            f"{r[at]:.9g}); {beyond} of {r.size} beyond, mean difference {difference.mean():.3e}"
        )
    return largest


def _pair(what: str, engine: ArrayLike, reference: ArrayLike) -> tuple[Float, Float]:
    e, r = np.asarray(engine, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    _expect(e.shape == r.shape, f"{what}: shape {e.shape}, reference {r.shape}")
    return e, r


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
