import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import OptionError
from engine.evaluation.store import Outcome, Pair, Store

PAIR = Pair(photo="a.png", target=3, label="dog", score=0.75, box_share=None, boxes=((0.0, 0.25, 0.5, 1.0),))
OUTCOME = Outcome(
    photo="a.png",
    target=3,
    method="rise:masks=9",
    engine="1.0",
    milliseconds=12.5,
    scored=8,
    scorable=9,
    evaluations={"forward": 9},
    warnings=("one", "two"),
    measures={"drop": 1.25, "ebpg": None},
    heatmap=b"png",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.sqlite"
    with Store(path) as store:
        store.add_photo("a.png", "ab" * 32, [PAIR])
        store.add_method("rise:masks=9", {"name": "rise"})
        store.add(OUTCOME)
    return path


def test_what_is_written_is_read(file: Path) -> None:
    with Store(file) as store:
        assert store.photos() == {"a.png": ("ab" * 32, None)}
        assert store.pairs() == [PAIR]
        assert store.methods() == {"rise:masks=9": {"name": "rise"}}
        assert store.outcomes() == [replace(OUTCOME, heatmap=None)]
        assert store.heatmaps() == {("a.png", 3, "rise:masks=9"): b"png"}
        assert (store.settings(), store.metrics(), store.thumbnails()) == ({}, {}, {})
        store.add_thumbnail("a.png", b"jpeg")
        assert store.thumbnails() == {"a.png": b"jpeg"}


def test_an_outcome_replaces_the_earlier_one_with_its_measures(file: Path) -> None:
    failed = Outcome(photo="a.png", target=3, method="rise:masks=9", engine="1.0", error="no")
    with Store(file) as store:
        store.add(failed)
        assert store.outcomes() == [failed]
        assert store._rows("SELECT count(*) FROM measures") == [(0,)]


def test_an_unread_photo_can_be_read_later(file: Path) -> None:
    with Store(file) as store:
        store.add_unread("b.png", "is damaged")
        assert store.photos()["b.png"] == (None, "is damaged")
        store.add_photo("b.png", "cd" * 32, [])
        assert store.photos()["b.png"] == ("cd" * 32, None)


def test_a_transaction_is_written_whole_or_not_at_all(file: Path) -> None:
    with Store(file) as store:
        before = store.outcomes()
        with pytest.raises(ValueError, match=r"^drop of .* is nan; expected a finite number or None$"):
            store.add(replace(OUTCOME, milliseconds=1.0, measures={"ebpg": 1.0, "drop": float("nan")}))
        assert store.outcomes() == before


def test_settings_must_agree_and_notes_need_not(file: Path) -> None:
    with Store(file) as store:
        store.agree({"threshold": "0.5"}, {"model": "a.ada"})
        store.agree({"threshold": "0.5"}, {"model": "b.ada"})
        assert store.settings() == {"model": "b.ada", "threshold": "0.5"}
        with pytest.raises(OptionError) as caught:
            store.agree({"threshold": "0.4"}, {"model": "c.ada"})
        assert str(caught.value) == (
            f"{file}: holds results with threshold 0.5; expected 0.4, as now asked for: choose another folder, or "
            "ask as before"
        )
        assert store.settings()["model"] == "b.ada"


def test_a_method_or_measure_that_means_something_else(file: Path) -> None:
    with Store(file) as store:
        store.add_method("rise:masks=9", {"name": "rise"})
        store.add_metric("drop", {"unit": "%"})
        assert store.metrics() == {"drop": {"unit": "%"}}
        with pytest.raises(
            OptionError, match=r"holds results of 'rise:masks=9' as \{\"name\": \"rise\"\}; expected \{"
        ):
            store.add_method("rise:masks=9", {"name": "rice"})
        with pytest.raises(
            OptionError, match=r"holds results of 'drop' as .*; expected \{\"unit\": \"\"\}, as now asked"
        ):
            store.add_metric("drop", {"unit": ""})


def test_a_file_that_holds_no_results(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("no database, whatever its name says" * 100)
    with pytest.raises(OptionError, match=r"text.sqlite: cannot be used as results file: file is not a database; "):
        Store(text)
    foreign = tmp_path / "foreign.sqlite"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE settings (name TEXT)")
    connection.close()
    with pytest.raises(OptionError, match=r"foreign.sqlite: is a database of another program or version; expected"):
        Store(foreign)
    with pytest.raises(OptionError, match=r"none/a.sqlite: cannot be used as results file: unable to open database"):
        Store(tmp_path / "none" / "a.sqlite")


def test_results_can_be_read_while_they_are_written(file: Path) -> None:
    with Store(file) as writer, Store(file) as reader:
        writer.add_method("sise", {})
        assert set(reader.methods()) == {"rise:masks=9", "sise"}
