import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.__main__ import app
from engine.agreement import Agreement, measure_agreement
from engine.bundle import load_bundle
from engine.cli.console import run
from tests.devices import needs_openvino


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["engine", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as caught:
        run(app)
    return caught.value.code or 0


def test_table_and_json(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    photos = int8_bundle.parent / "photos"
    assert call(monkeypatch, "agreement", int8_bundle, photos, "--json") == 0
    figures = json.loads(capfd.readouterr().out)
    record = load_bundle(int8_bundle).manifest["int8"]
    bounds = {"bounds": {"spearman": 0.98, "spearman_worst": 0.9}, "within_bounds": True}
    assert figures == {"device": "cpu", "precision": "int8", **record["agreement"], **bounds}

    assert call(monkeypatch, "agreement", int8_bundle, photos / "00.png", photos / "01.png", "--top", 2) == 0
    out = capfd.readouterr().out
    assert "int8 on cpu against float32 on cpu" in out
    assert re.search(r"4 heatmaps of 2 photos, \d+ masks +typical +worst", out)
    assert re.search(r"Spearman's ρ of two heatmaps \(median\) +[01]\.\d{4} +[01]\.\d{4}", out)
    assert re.search(r"difference of a mask's scores \(mean\) +0\.00\d\d +0\.0\d{3}", out)
    assert "bounds of Spearman's ρ: 0.98 typical, 0.9 worst; met here\n" in out


def test_bounds_that_are_not_met(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def measured(*arguments: Any, **options: Any) -> Agreement:
        return replace(measure_agreement(*arguments, **options), spearman_worst=0.8999)

    monkeypatch.setattr("engine.cli.agreement.measure_agreement", measured)
    command = ("agreement", int8_bundle, int8_bundle.parent / "photos" / "00.png")
    assert call(monkeypatch, *command) == 0
    assert "bounds of Spearman's ρ: 0.98 typical, 0.9 worst; NOT MET here\n" in capfd.readouterr().out
    assert call(monkeypatch, *command, "--json") == 0
    assert json.loads(capfd.readouterr().out)["within_bounds"] is False


@needs_openvino
def test_bounds_are_of_int8(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("agreement", int8_bundle, int8_bundle.parent / "photos" / "00.png")
    assert call(monkeypatch, *command, "--device", "openvino", "--precision", "float32") == 0
    assert "bounds" not in capfd.readouterr().out


def test_float32_is_not_compared_with_itself(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "agreement", int8_bundle, "x.png", "--precision", "float32") == 2
    text = "device cpu and precision float32 are what others are compared with; choose another of them"
    assert text in " ".join(capfd.readouterr().err.split())


def test_a_number_of_classes_that_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is told before anything is looked for, or loaded."""
    assert call(monkeypatch, "agreement", "none.ada", "none.png", "--top", 0) == 2
    assert capfd.readouterr().err == "error: top is 0; expected a whole number of at least 1\n"


def test_warnings_of_the_tuning_are_shown(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def warning(*arguments: Any, **options: Any) -> engine.Explainer:
        logging.getLogger("engine.tuning").warning("nothing is remembered")
        return engine.load(*arguments, **options)

    monkeypatch.setattr("engine.cli.agreement.load", warning)
    assert call(monkeypatch, "agreement", int8_bundle, int8_bundle.parent / "photos" / "00.png", "--json") == 0
    assert capfd.readouterr().err == 2 * "warning: nothing is remembered\n"


def test_inspect_prints_the_agreement(
    int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "inspect", int8_bundle) == 0
    out = capfd.readouterr().out
    assert "int8 against float32, on 8 of 8 calibration photos" in out
    assert "bounds of Spearman's ρ: 0.98 typical, 0.9 worst; met here\n" in out
    assert "NOT USABLE" not in out
