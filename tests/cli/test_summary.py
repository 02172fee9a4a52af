import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from engine.cli.summary import print_summary
from engine.evaluation import summarise
from tests.evaluation.results import write_results


@pytest.mark.parametrize("width", [40, 80])
def test_a_row_for_each_measure_and_a_column_for_each_method(tmp_path: Path, width: int) -> None:
    """In a narrow terminal the methods come one after the other."""
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with write_results(tmp_path / "results.sqlite") as store:
        print_summary(summarise(store, "sise"), console)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert ("sise ada-sise rise:masks=9 (1 of 4 pairs)" in lines) == (width == 80)
    assert ("EBPG ↑ % 40.0 50.0 45.0" in lines) == (width == 80)
    assert ("EBPG ↑ % 50.0" in lines) == (width == 40)
    words = " ".join(lines)  # titles are broken into lines in a narrow terminal
    for title in ("all: 4 pairs", "large boxes: 1 pair", "small boxes: difference from sise"):
        assert title in words
    if width == 80:
        assert "EBPG ↑ % +0.0 +5.0" in lines
        assert "sise 4 3 0 25 forward 2, tapped 1" in lines
        assert "rise:masks=9 1 1 1 10 forward 0, tapped 1" in lines


def test_the_best_mean_is_bold(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False, force_terminal=True, color_system="standard")
    with write_results(tmp_path / "results.sqlite") as store:
        print_summary(summarise(store), console)
    bold = re.findall(r"\x1b\[1m *([\d.]+) *\x1b", console.file.getvalue())
    assert bold == ["50.0", "0.250", "55.0", "0.375", "0.375", "20.0", "0.000"]
