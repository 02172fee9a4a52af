"""What the results of an evaluation say: means with intervals, differences, and what they cost."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import OptionError
from engine.evaluation.bootstrap import Interval, bootstrap_mean
from engine.evaluation.store import Outcome, Pair, Store

SMALL = 0.33
SUBSETS = ("all", "small boxes", "large boxes")
"""Pairs whose boxes cover at most 33 % of the network's view are apart: on them chance alone scores less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a measure's values mean.

    Attributes:
        name: What users call it.
        title: A few words for tables.
        unit: `%`, or empty.
        higher_is_better: Whether more is better.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool

    @property
    def heading(self) -> str:
        """The title, which way is better, and the unit."""
        return " ".join(filter(None, (self.title, "↑" if self.higher_is_better else "↓", self.unit)))

    def text(self, value: float, *, signed: bool = False) -> str:
        """Return a value as tables show it."""
        digits = 1 if self.unit == "%" else 3
        return f"{value:{'+' if signed else ''}z.{digits}f}"

    def range_text(self, interval: Interval, *, signed: bool = False) -> str:
        """Return an interval as tables show it; empty where there is none."""
        if interval.low is None or interval.high is None:
            return ""
        return f"{self.text(interval.low, signed=signed)} … {self.text(interval.high, signed=signed)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measure of one method over one subset.

    Attributes:
        interval: The mean over the pairs where the measure is defined, or None if there is none.
        difference: The mean of the differences from the reference on the pairs that both have, or None.
    """

    interval: Interval | None
    difference: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a method took over all its pairs.

    Attributes:
        pairs: How many pairs it explained.
        photos: On how many photos.
        failures: How many pairs it could not explain.
        milliseconds: Median time of one explanation.
        scored: Mean number of changed images that were scored.
        evaluations: Mean number of images that each graph computed.
    """

    pairs: int
    photos: int
    failures: int
    milliseconds: float | None
    scored: float | None
    evaluations: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the results say.

    Attributes:
        settings: What holds for all of them: the bundle's hash, the data set's, the threshold, the activation; and the
            names of the model and of the data set's form.
        engines: Versions of the engine that made them.
        measures: The measures, in the order in which they came.
        methods: The options of each method, in the order in which they came.
        reference: The method that the others are compared with, or None.
        pairs: How many pairs each subset has.
        photos: How many photos have pairs.
        looked_at: How many photos were looked at.
        explained: How many pairs each method has explained, by subset and method.
        cells: By subset, method and measure.
        costs: By method.
        failures: What could not be read or explained, and why.
    """

    settings: Mapping[str, str]
    engines: tuple[str, ...]
    measures: tuple[Measure, ...]
    methods: Mapping[str, Mapping[str, str]]
    reference: str | None
    pairs: Mapping[str, int]
    photos: int
    looked_at: int
    explained: Mapping[tuple[str, str], int]
    cells: Mapping[tuple[str, str, str], Cell]
    costs: Mapping[str, Cost]
    failures: tuple[str, ...]

    def best(self, subset: str, measure: Measure) -> float | None:
        """Return the best mean of a measure among the methods that explained the most pairs; None if fewer than two."""
        most = max(self.explained[subset, method] for method in self.methods)
        methods = [method for method in self.methods if self.explained[subset, method] == most]
        intervals = [self.cells[subset, method, measure.name].interval for method in methods]
        means = [interval.mean for interval in intervals if interval is not None]
        if len(means) < 2:
            return None
        return max(means) if measure.higher_is_better else min(means)

    def heading(self, subset: str, method: str) -> str:
        """Return what tables call a method: how many pairs it has is in it, where these are not all of the subset."""
        count = self.explained[subset, method]
        return method if count == self.pairs[subset] else f"{method} ({count} of {self.counted(subset)})"

    def counted(self, subset: str) -> str:
        """Return how many pairs a subset has, in words."""
        count = self.pairs[subset]
        return f"{count} pair{'' if count == 1 else 's'}"


def summarise(store: Store, reference: str | None = None) -> Summary:
    """Summarise all that a store holds.

    Args:
        store: The results.
        reference: The method that the others are compared with, as `engine.spelling.spell` writes it.

    Raises:
        OptionError: The store has no such method, or cannot be read.
    """
    methods = {name: dict(facts["options"]) for name, facts in store.methods().items()}  # type: ignore[call-overload]
    expect_reference(reference, methods)
    measures = tuple(
        Measure(
            name=name,
            title=str(facts["title"]),
            unit=str(facts["unit"]),
            higher_is_better=bool(facts["higher_is_better"]),
        )
        for name, facts in store.metrics().items()
    )
    pairs = {(pair.photo, pair.target): pair for pair in store.pairs()}
    outcomes = store.outcomes()
    done = [outcome for outcome in outcomes if outcome.error is None]
    cells = {}
    explained: dict[tuple[str, str], int] = {}
    for subset in SUBSETS:
        taken = [outcome for outcome in done if _belongs(pairs[outcome.photo, outcome.target], subset)]
        counts = Counter(outcome.method for outcome in taken)
        explained |= {(subset, method): counts[method] for method in methods}
        for measure in measures:
            values: dict[str, dict[tuple[str, int], float]] = {name: {} for name in methods}
            for outcome in taken:
                value = outcome.measures.get(measure.name)
                if value is not None:
                    values[outcome.method][outcome.photo, outcome.target] = value
            for method in methods:
                of_reference = values.get(reference, {}) if reference not in (None, method) else {}
                cells[subset, method, measure.name] = _cell(values[method], of_reference)
    photos = store.photos()
    unread = [f"{name}: {error}" for name, (_, error) in photos.items() if error is not None]
    failed = [
        f"{outcome.photo}, {pairs[outcome.photo, outcome.target].label}, {outcome.method}: {outcome.error}"
        for outcome in outcomes
        if outcome.error is not None
    ]
    return Summary(
        settings=store.settings(),
        engines=tuple(sorted({outcome.engine for outcome in outcomes})),
        measures=measures,
        methods=methods,
        reference=reference,
        pairs={subset: sum(_belongs(pair, subset) for pair in pairs.values()) for subset in SUBSETS},
        photos=len({photo for photo, _ in pairs}),
        looked_at=len(photos) - len(unread),
        explained=explained,
        cells=cells,
        costs={method: _cost([outcome for outcome in outcomes if outcome.method == method]) for method in methods},
        failures=(*unread, *failed),
    )


def expect_reference(reference: str | None, methods: Iterable[str]) -> None:
    """Raise `OptionError` if there is a reference that is none of the methods."""
    known = dict.fromkeys(methods)
    if reference is not None and reference not in known:
        raise OptionError(f"reference is {reference!r}; expected one of the methods, {', '.join(known)}")


def _belongs(pair: Pair, subset: str) -> bool:
    if subset == "all":
        return True
    return pair.box_share is not None and (pair.box_share <= SMALL) == (subset == "small boxes")


def _cell(values: Mapping[tuple[str, int], float], reference: Mapping[tuple[str, int], float]) -> Cell:
    both = [key for key in values if key in reference]
    return Cell(
        interval=bootstrap_mean(list(values.values()), [photo for photo, _ in values]),
        difference=bootstrap_mean([values[key] - reference[key] for key in both], [photo for photo, _ in both]),
    )


def _cost(outcomes: Sequence[Outcome]) -> Cost:
    done = [outcome for outcome in outcomes if outcome.error is None]
    totals: Counter[str] = Counter()
    for outcome in done:
        totals.update(outcome.evaluations)
    times = [outcome.milliseconds for outcome in done if outcome.milliseconds is not None]
    return Cost(
        pairs=len(done),
        photos=len({outcome.photo for outcome in done}),
        failures=len(outcomes) - len(done),
        milliseconds=float(np.median(times)) if times else None,
        scored=sum(outcome.scored or 0 for outcome in done) / len(done) if done else None,
        evaluations={graph: total / len(done) for graph, total in totals.items()},
    )
