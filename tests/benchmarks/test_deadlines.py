"""The page of deadlines: what it says of the machine, and that it has the figures that were measured."""

import json
from pathlib import Path

from benchmarks.deadlines import BETWEEN, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deadlines.md"


def test_the_page_has_the_figures_and_where_they_were_measured() -> None:
    report = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    written = PAGE.read_text(encoding="utf-8").split(BETWEEN[0])[1].split(BETWEEN[1])[0]
    assert written.strip() == tables(report).strip()
    facts = report["machine"]
    assert f", processor {facts['processor']}, architecture " in written
    assert f", onnxruntime {facts['onnxruntime']}, " in written
