"""Ada-SISE on a GPU: the phases of `ada_sise`, whose arrays stay in device memory.

Where one class is explained by all its masks, the host learns how many there are, and nothing else before the end.
Otherwise it plans which are scored, and estimates the scores of the others, as on the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.budget import Plan, plan, take_turns
from engine.kernels import Kriging, Selection, select_channels
from engine.kernels.device import Array, Mark
from engine.kernels.launch import Chosen, Ranges, Table
from engine.kernels.similarity import spearman
from engine.methods.ada_sise import PRESETS, SETTLED, STRIDE, AdaSise, estimated, reports_of, warnings_of
from engine.methods.base import Attribution
from engine.probe import Probe
from engine.resident import Resident

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def explain_on_device(method: AdaSise, probe: Probe, gpu: Resident) -> list[Attribution]:
    """Explain every class of the probe; see `AdaSise.explain`."""
    options = probe.options
    all_masks = PRESETS[method.preset] is None and options.max_masks is None and options.deadline_ms is None
    with gpu.turn():
        try:
            gpu.resize(options.batch_size)
            run = _Run(method, probe, gpu)
            return run.explain_one() if all_masks and len(probe.targets) == 1 else run.explain_planned()
        finally:
            if probe.device_image is not None:  # also if it fails: the image may not have been copied yet
                gpu.device.come_before(probe.device_image.stream)


class _Run:
    """One image on the device.

    Args:
        method: The options.
        probe: The image.
        gpu: Where.
    """

    def __init__(self, method: AdaSise, probe: Probe, gpu: Resident) -> None:
        self._method, self._probe, self._gpu, self._kernels = method, probe, gpu, gpu.kernels
        self._phases: list[tuple[str, Mark]] = []
        self._maps: Callable[[], Sequence[Floats]] = lru_cache(gpu.maps)
        baseline = probe.baseline(method.baseline)
        self._enter("tap")
        gpu.begin(probe.image if probe.device_image is None else probe.device_image, baseline)

    def explain_one(self) -> list[Attribution]:
        """Explain one class by all its masks."""
        kernels, device = self._kernels, self._gpu.device
        found: list[tuple[Array, Chosen]] = []
        plans: list[Plan] = []

        def choose(_: int) -> None:
            self._enter("select")
            flat = kernels.find_flat()
            found.append((flat, kernels.choose(flat, self._method.rule, self._method.mu)))

        self._probe.tap_on(self._gpu, choose)
        ((flat, chosen),) = found
        counts, constant = device.download(chosen.counts), device.download(flat).astype(bool)
        selections, count = _selections(self._gpu, chosen, counts), int(counts[:, 2].sum())
        table = kernels.list_masks(chosen, count)
        ranges, scores, done = self._score(
            table, lambda: plans.append(plan(selections, np.split(constant, kernels.firsts[1:])))
        )
        (own,) = plans
        of_layers = np.concatenate([own.of_layer(layer) for layer in range(len(kernels.shapes))])
        made = self._heatmap(table, ranges, scores)
        self._probe.count(self._probe.network.scorer, done)
        measured = np.full(count, np.nan)
        measured[of_layers] = device.download(scores)[:count, 0]
        return self._ended([self._attribution(own, measured, measured, made)])

    def explain_planned(self) -> list[Attribution]:
        """Explain classes by the masks that the host plans, with one scoring of all of them."""
        method, probe, gpu, kernels = self._method, self._probe, self._gpu, self._kernels
        averages: list[list[Floats]] = []
        probe.tap_on(gpu, lambda count: averages.append(gpu.averages(count)))
        self._enter("select")
        flat = np.split(gpu.device.download(kernels.find_flat()).astype(bool), kernels.firsts[1:])
        gpu.expect_finite()
        alphas = [np.concatenate(parts) for parts in zip(*averages, strict=True)]
        chosen = [[select_channels(own[k], method.rule, method.mu) for own in alphas] for k in range(len(alphas[0]))]
        plans = [plan(selections, flat) for selections in chosen]
        orders, krigings = zip(*(method.order(probe, self._maps, own) for own in plans), strict=True)
        turns = take_turns([own.pairs(order) for own, order in zip(plans, orders, strict=True)])
        table = kernels.place(_masks(np.array(turns, np.int32).reshape(-1, 2)))
        _, scores, done = self._score(table)
        probe.count(probe.network.scorer, done)
        rows = {pair: row for row, pair in enumerate(turns[:done])}
        found = gpu.device.download(scores)[:done]
        parts = enumerate(zip(plans, orders, krigings, strict=True))
        return self._ended(
            [self._estimated(own, order, kriging, rows, found[:, k]) for k, (own, order, kriging) in parts]
        )

    def _estimated(
        self,
        own: Plan,
        order: NDArray[np.int64],
        kriging: Kriging | None,
        rows: dict[tuple[int, int], int],
        found: Doubles,
    ) -> Attribution:
        """Explain one class by the scores of its own masks, and estimates of those that have none."""
        self._enter("estimate")
        scores = np.full(len(own.masks), np.nan)
        for number, pair in zip(order, own.pairs(order), strict=True):
            if pair in rows:
                scores[number] = found[rows[pair]]
        known, kriging, values = estimated(own, order, scores, kriging, self._maps, self._probe.size)
        by_layer = np.argsort(own.masks[:, 0], kind="stable")
        masks = _masks(own.masks[by_layer].astype(np.int32), ~np.isnan(scores[by_layer]))
        table = self._kernels.place(masks)
        ranges = self._kernels.find_ranges(table)

        def made_of(values: Doubles) -> _Made:
            return self._heatmap(table, ranges, self._gpu.device.upload(values[by_layer]))

        made = made_of(values)
        found_one = self._attribution(own, scores, values, made)
        if kriging is None or found_one.heatmap is None or len(known) < 2:
            return found_one
        self._enter("estimate")
        half = known[: len(known) // 2]
        before = self._gpu.device.download(made_of(kriging.estimate(half, scores[half])).heatmap).astype(np.float64)
        settled = spearman(before[::STRIDE, ::STRIDE], found_one.heatmap[::STRIDE, ::STRIDE])
        return replace(found_one, figures={SETTLED: settled})

    def _score(self, table: Table, meanwhile: Callable[[], None] = lambda: None) -> tuple[Ranges, Array, int]:
        self._enter("score")
        probe = self._probe
        ranges = self._kernels.find_ranges(table)
        pace = probe.pace(probe.network.scorer)
        return ranges, *self._gpu.score(table, ranges, probe.classes, probe.options.activation, pace, meanwhile)

    def _heatmap(self, table: Table, ranges: Ranges, scores: Array) -> "_Made":
        """Combine and fuse."""
        self._enter("combine")
        views, there = self._kernels.views(table, ranges, scores)
        self._enter("fuse")
        heatmap, cuts, made = self._kernels.fuse(views, there, self._method.fusion)
        return _Made(heatmap, made, cuts, views, there)

    def _attribution(self, own: Plan, scores: Doubles, values: Doubles, made: "_Made") -> Attribution:
        """Bring what was found for a class to the host; whose image is on the device gets the heatmap there as well."""
        download, given = self._gpu.device.download, self._probe.device_image
        if given is not None:
            given.heatmaps.append(made.heatmap)
        there = download(made.there).astype(bool)
        cuts = [None if np.isnan(cut) else float(cut) for cut in download(made.cuts)]
        layers = reports_of(self._probe.bundle.layers, own, scores, values, cuts)
        views = download(made.views) if self._probe.wants_maps else np.zeros((len(there), 0, 0))
        return Attribution(
            heatmap=download(made.heatmap).astype(np.float64) if download(made.made)[0] else None,
            scored=int(np.count_nonzero(~np.isnan(scores))),
            scorable=len(scores),
            warnings=(*warnings_of(layers, there.tolist()), *self._gpu.warnings()),
            layers=layers,
            visualization_maps=tuple(view if ok else None for view, ok in zip(views, there, strict=True)),
        )

    def _enter(self, phase: str) -> None:
        """Begin a phase, on the device's clock."""
        self._phases.append((phase, self._gpu.device.mark()))

    def _ended(self, found: list[Attribution]) -> list[Attribution]:
        """Check what was computed, and note what each phase took."""
        self._gpu.expect_finite()
        self._enter("")
        self._phases[-1][1].wait()
        timings = self._probe.clock.timings_ms
        for (phase, begin), (_, end) in zip(self._phases, self._phases[1:], strict=False):
            timings[phase] = timings.get(phase, 0.0) + end.ms_since(begin)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A heatmap on the device, with what it was made of; see `Kernels.fuse` and `Kernels.views`."""

    heatmap: Array
    made: Array
    cuts: Array
    views: Array
    there: Array


def _selections(gpu: Resident, chosen: Chosen, counts: NDArray[np.int32]) -> list[Selection]:
    """Bring what was chosen to the host; the counts are there."""
    order, thresholds = (gpu.device.download(array) for array in (chosen.order, chosen.thresholds))
    return [
        Selection(
            channels=order[first : first + kept].astype(np.int64),
            positive=int(positive),
            threshold=float(threshold) if kept else None,
        )
        for first, (positive, kept, _), threshold in zip(gpu.kernels.firsts_padded, counts, thresholds, strict=True)
    ]


def _masks(pairs: NDArray[np.int32], scored: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """Return masks as in a `Table`: int32 [n, 3] from [n, 2], all of them scored if nothing else is said."""
    flags = np.ones(len(pairs), np.int32) if scored is None else scored.astype(np.int32)
    return np.column_stack([pairs, flags]).astype(np.int32)
