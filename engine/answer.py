"""From what a method finds to the explanations that the caller gets, in the time that there is."""

import logging
import time
from dataclasses import fields

import numpy as np

from engine.costs import Costs
from engine.deadline import FINISH
from engine.errors import DeadlineError
from engine.explanation import Explanation
from engine.methods import Attribution, GradCam, Method
from engine.methods.ada_sise import SETTLED
from engine.probe import Probe

_LOG = logging.getLogger(__name__)


def answer(probe: Probe, method: Method, costs: Costs, *, visualization_maps: bool) -> list[Explanation]:
    """Explain every class of a probe.

    Args:
        probe: The image.
        method: How to explain it.
        costs: Takes note of what the method did after its last run of the network, or that there was no time for it.
        visualization_maps: Whether to keep V_l of every layer in the results.

    Raises:
        DeadlineError: There is not enough time, and the caller wants no other map in the place of the method's.
        EngineError: As `engine.methods.Method.explain` says.
    """
    finish = FINISH.format(method.name)
    try:
        found = _within_deadline(probe, method)
    except DeadlineError:
        costs.refused(finish)
        raise
    class_scores = probe.class_scores()
    probe.clock.stop()
    results = [
        _explanation(probe, attribution, used, method, index, float(score), visualization_maps)
        for (attribution, used), index, score in zip(found, probe.classes, class_scores, strict=True)
    ]
    took = time.perf_counter() - probe.scored_at
    if any(used.name == method.name for _, used in found):
        costs.note(finish, took, len(found))
    else:
        costs.refused(finish)
        costs.note(FINISH.format(GradCam.name), took, len(found))
    for result in results:
        _LOG.info("%s", result)
        for warning in result.warnings:
            _LOG.warning("%s: %s", result.name, warning)
    return results


def _within_deadline(probe: Probe, method: Method) -> list[tuple[Attribution, Method]]:
    """Explain every class by the method, or by Grad-CAM where there is no time for it; tell which it was."""
    found: list[Attribution] = []
    try:
        found = method.explain(probe)
    except DeadlineError:
        if probe.options.too_late == "error":
            raise
        probe.scored_at = time.perf_counter()  # what was in vain is no part of what Grad-CAM does
    probe.deadline.lift()  # the class scores are there, or cost a run
    if found and (probe.options.deadline_ms is None or not any(map(_is_empty, found))):
        return [(attribution, method) for attribution in found]
    if probe.options.too_late == "error":
        raise probe.deadline.error("there was no time for a mask of every class")
    instead = GradCam()
    spare = instead.explain(probe)
    if not found:
        return [(attribution, instead) for attribution in spare]
    return [(other, instead) if _is_empty(own) else (own, method) for own, other in zip(found, spare, strict=True)]


def _is_empty(found: Attribution) -> bool:
    """Tell whether the deadline has let nothing through."""
    return found.heatmap is None and found.scored == 0 < found.scorable


def _explanation(
    probe: Probe,
    found: Attribution,
    method: Method,
    asked: Method,
    index: int,
    class_score: float,
    visualization_maps: bool,
) -> Explanation:
    """Put together what is known of one class, explained by one method in the place of another, or by that itself."""
    bundle, network, options = probe.bundle, probe.network, probe.options
    heatmap = np.zeros(probe.size) if found.heatmap is None else found.heatmap
    views = tuple(None if view is None else view.astype(np.float32) for view in found.visualization_maps)
    return Explanation(
        heatmap=heatmap.astype(np.float32),
        target=index,
        label=None if bundle.labels is None else bundle.labels[index],
        class_score=class_score,
        activation=options.activation,
        method=method.name,
        options={field.name: getattr(method, field.name) for field in fields(method)},
        max_masks=None if options.max_masks is None else int(options.max_masks),
        deadline_ms=None if options.deadline_ms is None else float(options.deadline_ms),
        layers=found.layers,
        precision=network.precision if found.scored and probe.evaluations.get(network.scorer) else "float32",
        unit=method.unit,
        scored=found.scored,
        scorable=found.scorable,
        complete=method is asked and found.scored == found.scorable,
        evaluations=dict(probe.evaluations),
        figures=dict(found.figures),
        timings_ms=dict(probe.clock.timings_ms),
        warnings=(*_replaced(probe, method, asked), *found.warnings, *_warnings(found, method.unit)),
        picture=probe.picture,
        attribution=found.attribution,
        visualization_maps=views if visualization_maps and method is asked else None,
    )


def _replaced(probe: Probe, method: Method, asked: Method) -> list[str]:
    """Say that the map is not the one that was asked for."""
    if method is asked:
        return []
    return [
        f"{probe.options.deadline_ms:g} ms were too short for {asked.name}: this is the map of {method.name} for the "
        "last layer"
    ]


def _warnings(found: Attribution, unit: str) -> list[str]:
    """Say what the reader of any heatmap should know."""
    warnings = []
    if found.scored < found.scorable:
        settled = found.figures.get(SETTLED)
        like = "" if settled is None else f", whose correlation with that of half of these scores is {settled:.2f}"
        warnings.append(f"{_counted(found, unit)}; the heatmap is an approximation{like}")
    if found.heatmap is None:
        why = "the method's map is constant, or nowhere positive"
        if found.layers:
            why = "no layer gave a visualization map, or fusion cut everything away"
        warnings.append(f"the heatmap is all zeros: {why}")
    return warnings


def _counted(found: Attribution, unit: str) -> str:
    """Say how many changed images have a score, and what the others count for."""
    if found.layers and not found.scored:
        return f"none of {found.scorable} {unit} was scored, and all count alike"
    done = "scored, the scores of the others estimated" if found.layers else "used"
    return f"{found.scored} of {found.scorable} {unit} were {done}"
