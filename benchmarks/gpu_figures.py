"""What benchmarks/gpu.py makes of what it has seen: how far explanations are apart, percentiles, ratios."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import engine
from benchmarks.gpu_table import COMPILED, TORCH
from engine.kernels.similarity import spearman

SPEARMAN = 0.995
_OTHER_MASKS = 0.01  # of the masks, which the average gradients of two runtimes select differently
_SCORES, _VIEWS, _HEATMAP_MEAN = 1e-4, 5e-4, 1e-4


def flops(module: nn.Module, image: NDArray[np.float32]) -> int:
    """Operations of one forward pass; a product and its sum are two."""
    parameter = next(module.parameters())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(torch.from_numpy(image).to(parameter.device))
    return int(counter.get_total_flops())


def differences(found: engine.Explanation, expected: engine.Explanation) -> dict[str, float]:
    """How far two explanations are apart; their maps where they have chosen the same masks."""
    others, scores, views = 0, [0.0], [0.0]
    assert found.visualization_maps is not None
    assert expected.visualization_maps is not None
    for number, (own, other) in enumerate(zip(found.layers, expected.layers, strict=True)):
        channels = own.selected_channels, other.selected_channels
        others += len(set(channels[0].tolist()) ^ set(channels[1].tolist()))
        _, first, second = np.intersect1d(*channels, return_indices=True)
        scores.append(float(np.nan_to_num(np.abs(own.scores[first] - other.scores[second])).max(initial=0.0)))
        view = found.visualization_maps[number], expected.visualization_maps[number]
        if channels[0].tolist() == channels[1].tolist() and view[0] is not None and view[1] is not None:
            views.append(float(np.abs(view[0] - view[1]).max()))
    return {
        "other_masks": others / max(1, sum(layer.selected for layer in expected.layers)),
        "scores": max(scores),
        "views": max(views),
        "heatmap_mean": float(np.abs(found.heatmap - expected.heatmap).mean()) if others == 0 else 0.0,
        "apart": 1 - spearman(found.heatmap, expected.heatmap),
    }


def agreement(name: str, precision: str, found: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Judge how far explanations are from those of the CPU: design.md, "Agreement", for float32."""
    bounds = {"apart": ("1 − Spearman's ρ", 1 - SPEARMAN)}
    if precision == "float32":
        bounds |= {
            "other_masks": ("share of masks that one selects only", _OTHER_MASKS),
            "scores": ("largest difference of a score", _SCORES),
            "views": ("largest difference of a map, where all masks are the same", _VIEWS),
            "heatmap_mean": ("mean difference of the heatmap, where all masks are the same", _HEATMAP_MEAN),
        }
    return [
        check(f"{name} beside the CPU path: {says}", max(own[key] for own in found), allowed)
        for key, (says, allowed) in bounds.items()
    ]


def summarise(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Percentiles of each way's milliseconds, medians of its phases and masks, and how the time a mask spreads."""
    found = {}
    for name in rounds[0]:
        own = [each[name] for each in rounds if each[name]]
        if not own:
            continue
        totals = [each["total"] for each in own]
        p50, p95, p99 = (float(value) for value in np.percentile(totals, [50, 95, 99]))
        p25, middle, p75 = np.percentile([each["total"] / max(1.0, each["masks"]) for each in own], [25, 50, 75])
        found[name] = {
            "images": len(own),
            "p50": p50,
            "p95": p95,
            "p99": p99,
            "noise": float((p75 - p25) / middle),
            "medians": {key: float(np.median([each[key] for each in own])) for key in own[0]},
            "masks_least": min(each["masks"] for each in own),
            "masks_most": max(each["masks"] for each in own),
        }
    return found


def ratios(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Torch's time ÷ the engine's within a round: the median over the images, and 90 % of them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for rival in (TORCH, COMPILED):
        for name in rounds[0]:
            both = [(each.get(rival), each[name]) for each in rounds]
            values = [a["total"] / b["total"] for a, b in both if a and b]
            if values and name not in (TORCH, COMPILED):
                low, middle, high = (float(value) for value in np.percentile(values, [5, 50, 95]))
                found.setdefault(rival, {})[name] = {"median": middle, "low": low, "high": high}
    return found


def check(what: str, found: float, allowed: float) -> dict[str, Any]:
    """What was found, and whether it is at most what is allowed."""
    return {"what": what, "found": float(found), "allowed": float(allowed), "met": bool(found <= allowed)}
