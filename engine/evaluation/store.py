"""The results of an evaluation: one SQLite file, in which every explanation is written whole or not at all."""

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from engine.errors import OptionError
from engine.evaluation.sample import Box

Facts: TypeAlias = dict[str, object]
Row: TypeAlias = tuple[Any, ...]  # as SQLite's columns are

_APPLICATION = 0x41534531  # what marks the file as ours
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE photos (name TEXT PRIMARY KEY, sha256 TEXT, error TEXT, thumbnail BLOB);
CREATE TABLE pairs (
    photo TEXT NOT NULL REFERENCES photos, class INTEGER NOT NULL, label TEXT NOT NULL, score REAL NOT NULL,
    box_share REAL, boxes TEXT NOT NULL, PRIMARY KEY (photo, class)
);
CREATE TABLE methods (name TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE metrics (name TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE explanations (
    photo TEXT NOT NULL, class INTEGER NOT NULL, method TEXT NOT NULL REFERENCES methods, engine TEXT NOT NULL,
    milliseconds REAL, scored INTEGER, scorable INTEGER, evaluations TEXT NOT NULL, warnings TEXT NOT NULL, error TEXT,
    heatmap BLOB, PRIMARY KEY (photo, class, method), FOREIGN KEY (photo, class) REFERENCES pairs
);
CREATE TABLE measures (
    photo TEXT NOT NULL, class INTEGER NOT NULL, method TEXT NOT NULL, metric TEXT NOT NULL, value REAL,
    PRIMARY KEY (photo, class, method, metric),
    FOREIGN KEY (photo, class, method) REFERENCES explanations ON DELETE CASCADE
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A photo and a class that is on it.

    Attributes:
        photo: Name of the photo.
        target: Index of the class.
        label: What the data set calls it.
        score: Its score for the unchanged photo.
        box_share: The share of the network's view that the boxes of the class cover together; None without boxes.
        boxes: The boxes, as shares of width and height of the network's view, for drawing.
    """

    photo: str
    target: int
    label: str
    score: float
    box_share: float | None
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one method gave for one pair.

    Attributes:
        photo: Name of the photo.
        target: Index of the class.
        method: The method, as `engine.spelling.spell` writes it.
        engine: Version of the engine.
        milliseconds: What the explanation took, without the measures.
        scored: How many changed images were scored.
        scorable: How many there were.
        evaluations: How many images each graph computed.
        warnings: What the reader of the heatmap should know.
        measures: The value of each measure; None where it is not defined.
        error: Why there is no explanation, or None; then there are no measures.
        heatmap: The heatmap as a small PNG of grey values, for the gallery, or None.
    """

    photo: str
    target: int
    method: str
    engine: str
    milliseconds: float | None = None
    scored: int | None = None
    scorable: int | None = None
    evaluations: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)
    error: str | None = None
    heatmap: bytes | None = None


class Store:
    """Opens a results file, or begins one. It can be read while an evaluation writes it.

    A process that is killed at any moment leaves every row that was written whole: SQLite's journal undoes what was
    under way.

    Args:
        path: The file.

    Raises:
        OptionError: It is no results file, or cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._told():
            self._connection = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def settings(self) -> dict[str, str]:
        """Return what holds for all results, by name; empty for a file that was just begun."""
        return dict(self._rows("SELECT name, value FROM settings ORDER BY name"))

    def agree(self, settings: Mapping[str, str], notes: Mapping[str, str]) -> None:
        """Write what holds for all results, or check that it is what the file's results were made with.

        Args:
            settings: By name, in words.
            notes: More, that is written over and not compared.

        Raises:
            OptionError: A setting is another.
        """
        with self._transaction():
            known = self.settings()
            for name, value in settings.items():
                if known.get(name, value) != value:
                    raise OptionError(
                        f"{self.path}: holds results with {name} {known[name]}; expected {value}, as now asked for: "
                        "choose another folder, or ask as before"
                    )
            for name, value in {**settings, **notes}.items():
                self._connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def photos(self) -> dict[str, tuple[str | None, str | None]]:
        """Return the SHA-256 of each photo that was looked at, and why it could not be, by name."""
        rows = self._rows("SELECT name, sha256, error FROM photos ORDER BY name")
        return {name: (sha256, error) for name, sha256, error in rows}

    def add_photo(self, name: str, sha256: str, pairs: Sequence[Pair]) -> None:
        """Write a photo with its pairs."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO photos VALUES (?, ?, NULL, NULL)", (name, sha256))
            for pair in pairs:
                row = (pair.photo, pair.target, pair.label, pair.score, pair.box_share, json.dumps(pair.boxes))
                self._connection.execute("INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?)", row)

    def add_unread(self, name: str, error: str) -> None:
        """Write that a photo could not be looked at."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO photos VALUES (?, NULL, ?, NULL)", (name, error))

    def add_thumbnail(self, name: str, picture: bytes) -> None:
        """Write what the network saw of a photo, for the gallery."""
        with self._transaction():
            self._connection.execute("UPDATE photos SET thumbnail = ? WHERE name = ?", (picture, name))

    def thumbnails(self) -> dict[str, bytes]:
        """Return what the network saw of each photo of the gallery."""
        return dict(self._rows("SELECT name, thumbnail FROM photos WHERE thumbnail IS NOT NULL ORDER BY name"))

    def pairs(self) -> list[Pair]:
        """Return all pairs, by photo and class."""
        rows = self._rows("SELECT photo, class, label, score, box_share, boxes FROM pairs ORDER BY photo, class")
        return [
            Pair(photo=photo, target=target, label=label, score=score, box_share=share, boxes=_boxes(boxes))
            for photo, target, label, score, share, boxes in rows
        ]

    def add_method(self, name: str, facts: Facts) -> None:
        """Write a method with all its options, once.

        Raises:
            OptionError: It is there already, and had other ones.
        """
        self._describe("methods", name, facts)

    def methods(self) -> dict[str, Facts]:
        """Return what was written of each method, in the order in which they came."""
        return self._described("methods")

    def add_metric(self, name: str, facts: Facts) -> None:
        """Write a measure with what its values mean, once.

        Raises:
            OptionError: It is there already, and meant something else.
        """
        self._describe("metrics", name, facts)

    def metrics(self) -> dict[str, Facts]:
        """Return what was written of each measure, in the order in which they came."""
        return self._described("metrics")

    def add(self, outcome: Outcome) -> None:
        """Write what a method gave for a pair, in one transaction; what is there of the two already is replaced."""
        key = (outcome.photo, outcome.target, outcome.method)
        row = (
            *key,
            outcome.engine,
            outcome.milliseconds,
            outcome.scored,
            outcome.scorable,
            json.dumps(dict(outcome.evaluations)),
            json.dumps(outcome.warnings),
            outcome.error,
            outcome.heatmap,
        )
        with self._transaction():
            self._connection.execute("DELETE FROM explanations WHERE photo = ? AND class = ? AND method = ?", key)
            self._connection.execute("INSERT INTO explanations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            for metric, value in outcome.measures.items():
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{metric} of {key} is {value}; expected a finite number or None")
                self._connection.execute("INSERT INTO measures VALUES (?, ?, ?, ?, ?)", (*key, metric, value))

    def outcomes(self) -> list[Outcome]:
        """Return what was written, by photo, class and method, without the heatmaps."""
        measures: dict[tuple[str, int, str], dict[str, float | None]] = {}
        for photo, target, method, metric, value in self._rows("SELECT * FROM measures ORDER BY rowid"):
            measures.setdefault((photo, target, method), {})[metric] = value
        found = []
        columns = "photo, class, method, engine, milliseconds, scored, scorable, evaluations, warnings, error"
        for row in self._rows(f"SELECT {columns} FROM explanations ORDER BY photo, class, method"):
            photo, target, method, engine, ms, scored, scorable, evaluations, warnings, error = row
            found.append(
                Outcome(
                    photo=photo,
                    target=target,
                    method=method,
                    engine=engine,
                    milliseconds=ms,
                    scored=scored,
                    scorable=scorable,
                    evaluations=json.loads(evaluations),
                    warnings=tuple(json.loads(warnings)),
                    measures=measures.get((photo, target, method), {}),
                    error=error,
                )
            )
        return found

    def heatmaps(self) -> dict[tuple[str, int, str], bytes]:
        """Return the gallery's heatmaps by photo, class and method."""
        rows = self._rows("SELECT photo, class, method, heatmap FROM explanations WHERE heatmap IS NOT NULL")
        return {(photo, target, method): heatmap for photo, target, method, heatmap in rows}

    def _prepare(self) -> None:
        """Begin the file, or check that it is ours."""
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            ((application,),) = self._rows("PRAGMA application_id")
            ((tables,),) = self._rows("SELECT count(*) FROM sqlite_schema")
            if tables == 0:
                for statement in _SCHEMA.split(";\n"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            elif application != _APPLICATION:
                raise OptionError(
                    f"{self.path}: is a database of another program or version; expected results of python -m engine "
                    "evaluate, or no file: choose another folder"
                )

    def _describe(self, table: str, name: str, facts: Facts) -> None:
        text = json.dumps(facts, sort_keys=True)
        with self._transaction():
            self._connection.execute(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", (name, text))
            ((known,),) = self._rows(f"SELECT facts FROM {table} WHERE name = ?", (name,))
            if known != text:
                raise OptionError(
                    f"{self.path}: holds results of {name!r} as {known}; expected {text}, as now asked for: choose "
                    "another folder"
                )

    def _described(self, table: str) -> dict[str, Facts]:
        return {
            name: json.loads(facts) for name, facts in self._rows(f"SELECT name, facts FROM {table} ORDER BY rowid")
        }

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[Row]:
        with self._told():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write all of what is done within, or nothing."""
        with self._told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what SQLite cannot do with the file."""
        try:
            yield
        except sqlite3.DatabaseError as err:
            raise OptionError(
                f"{self.path}: cannot be used as results file: {err}; choose another folder, or wait until no other "
                "process writes it"
            ) from err


def _boxes(text: str) -> tuple[Box, ...]:
    return tuple((left, top, right, bottom) for left, top, right, bottom in json.loads(text))
