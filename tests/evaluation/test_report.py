import base64
import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import OptionError
from engine.evaluation import Store, summarise, write_report
from engine.evaluation.page import gallery_picture
from engine.picture import overlay
from tests.evaluation.results import grey_file, write_results


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with write_results(tmp_path / "results.sqlite") as opened:
        yield opened


@pytest.fixture
def folder(store: Store, tmp_path: Path) -> Path:
    files = write_report(store, summarise(store, "sise"), tmp_path)
    assert [file.name for file in files] == ["summary.csv", "pairs.csv", "summary.json", "report.html"]
    return tmp_path


def refuse(constant: str) -> None:
    raise AssertionError(constant)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_the_summary_in_csv_and_json_agree(folder: Path) -> None:
    rows = table(folder / "summary.csv")
    content: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert len(rows) == 3 * 3 * 2
    as_text = [{key: "" if v is None else str(v) for key, v in row.items()} for row in content["results"]]
    assert as_text == rows
    row = next(row for row in content["results"] if (row["method"], row["measure"]) == ("ada-sise", "ebpg"))
    assert (row["subset"], row["mean"], row["pairs"], row["photos"]) == ("all", 50.0, 4, 3)
    assert (row["reference"], row["difference_mean"], row["difference_pairs"]) == ("sise", 0.0, 3)
    assert row["low"] < row["mean"] < row["high"]
    none = next(row for row in content["results"] if row["mean"] is None)
    assert (none["low"], none["high"], none["pairs"], none["reference"]) == (None, None, 0, None)


def test_what_else_the_json_says(folder: Path) -> None:
    content: Any = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert content["settings"]["threshold"] == "0.5"
    assert content["intervals"] == "95% percentile bootstrap over photos, 2000 draws"
    assert content["measures"][1] == {"name": "drop", "title": "Drop", "unit": "", "higher_is_better": False}
    assert content["methods"]["sise"]["options"] == {"masks": "9"}
    assert content["methods"]["sise"]["cost"]["evaluations"] == {"forward": 1.5, "tapped": 1.0}
    assert content["failures"] == ["d.png: is damaged", "a.png, cat, rise:masks=9: no <memory>"]


def test_every_pair_in_csv(folder: Path) -> None:
    rows = {(row["photo"], row["class"], row["method"]): row for row in table(folder / "pairs.csv")}
    assert len(rows) == 10
    assert rows["c.png", "0", "sise"] == {
        "photo": "c.png",
        "class": "0",
        "label": "=dog",
        "score": "0.75",
        "box_share": "",
        "method": "sise",
        "milliseconds": "40.0",
        "scored": "3",
        "scorable": "",
        "ebpg": "",
        "drop": "0.25",
        "error": "",
    }
    assert rows["a.png", "1", "rise:masks=9"]["error"] == "no <memory>"


class Page(HTMLParser):
    """Collects tags, the addresses they ask for, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_nothing_else_and_escapes_names(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe", "b", "memory"} & set(page.tags)
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "url(" not in text
    assert "a.png, cat, rise:masks=9: no <memory>" in page.text
    assert "bear (2)" in "".join(page.text)
    for words in ("Explanation methods on tiny.ada", "Quality: small boxes, 2 pairs", "Not explained: 2"):
        assert words in page.text


def test_the_tables_of_the_page(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    rows = [re.sub(r"<small>.*?</small>", "", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert "<th>method</th><th>EBPG ↑ %</th><th>Drop ↓</th>" in rows
    best = '<span class="best">{}</span>'
    assert f"<td>ada-sise</td><td>{best.format('50.0')}</td><td>0.375</td>" in rows
    assert f"<td>sise</td><td>40.0</td><td>{best.format('0.250')}</td>" in rows
    assert "<td>rise:masks=9 (1 of 4 pairs)</td><td>45.0</td><td>0.125</td>" in rows
    assert "<td>ada-sise</td><td>+0.0</td><td>+0.125</td>" in rows
    assert "<td>rise:masks=9 (0 of 1 pair)</td><td>–</td><td>–</td>" in rows  # large boxes
    assert "<td>sise</td><td>4</td><td>3</td><td>0</td><td>25</td><td>1.5</td><td>1.0</td>" in rows


def test_the_gallery_shows_the_photo_and_all_methods_in_one_row(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    (row,) = re.findall(r'<div class="row">(.*?)</div>', text)
    captions = re.findall(r"<figcaption>(.*?)<br><small>(.*?)</small>", row)
    assert captions == [
        ("what the network saw", ""),
        ("sise", "EBPG 40.0 · Drop 0.500"),
        ("ada-sise", "EBPG 50.0 · Drop 0.500"),
        ("rise:masks=9", "EBPG 45.0 · Drop 0.125"),
    ]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', row)]
    assert [picture.size for picture in pictures] == [(40, 20)] * 4


def test_a_picture_of_the_gallery() -> None:
    photo = Image.new("RGB", (101, 51), (90, 120, 30))
    heat = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (51, 1))
    drawn = np.asarray(gallery_picture(photo, grey_file(heat, "png"), [(0.2, 0.4, 0.6, 1.0)]))
    expected = np.asarray(overlay(np.rint(255 * heat).astype(np.float32) / np.float32(255), photo))
    boxed = np.zeros((51, 101), bool)
    boxed[20:51, 20:61] = True
    boxed[23:48, 23:58] = False
    np.testing.assert_array_equal(drawn[~boxed], expected[~boxed])
    assert tuple(drawn[21, 40]) == (255, 255, 255)
    assert tuple(drawn[20, 40]) == tuple(drawn[22, 40]) == (0, 0, 0)
    assert photo.getpixel((20, 20)) == (90, 120, 30)


def test_a_report_without_results(tmp_path: Path) -> None:
    with Store(tmp_path / "results.sqlite") as store:
        store.agree({"bundle": "b", "data set": "d", "threshold": "1", "activation": "none"}, {"model": "m"})
        store.agree({}, {"form": "f", "photos": "1", "left out": ""})
        write_report(store, summarise(store), tmp_path)
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1
    assert "Gallery" not in (tmp_path / "report.html").read_text()


def test_a_folder_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none/summary.csv: cannot be written: No such file or directory"):
        write_report(store, summarise(store), tmp_path / "none")
