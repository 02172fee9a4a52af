import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import engine
from engine.evaluation import Choice, Store, evaluate, read_dataset, summarise
from tests.devices import CPU, OPENVINO, needs_openvino
from tests.terminal import run_in_terminal
from tests.test_main import one_line, run
from tests.tiny_cnn import photo_pixels


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    """Two photos of a tabby cat and a cup."""
    entries = []
    for number in range(2):
        Image.fromarray(photo_pixels()[:, :: 1 - 2 * number]).save(tmp_path / f"{number}.png")
        boxes = [{"label": label, "xyxy": [10, 5, 50, 50]} for label in ("tabby cat", "cup", "bear")]
        entries.append({"file": f"{number}.png", "width": 90, "height": 60, "boxes": boxes})
    file = tmp_path / "list.json"
    file.write_text(json.dumps(entries))
    return file


def evaluated(*arguments: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    return run("evaluate", *arguments, "--threads", "1", code=code)


def test_tables_files_and_a_run_that_goes_on(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = ("--method", "ada-sise:rule=all:fusion=soft,sise", "--metric", "ebpg,drop", "--gallery", "1")
    done = evaluated(tiny_bundle, listing, "-o", out, "--threshold", "0", *first, "--reference", "sise")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"wrote {out / name}" for name in ("summary.csv", "pairs.csv", "summary.json", "report.html")
    ]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "all: 4 pairs" in lines
    assert "all: difference from sise" in lines
    assert (out / "report.html").read_text(encoding="utf-8").count("<figure>") == 3
    with engine.load(tiny_bundle, threads=1) as explainer, Store(tmp_path / "expected.sqlite") as store:
        methods = ["ada-sise:rule=all:fusion=soft", "sise"]
        evaluate(explainer, read_dataset(listing), methods, ["ebpg", "drop"], store, Choice(threshold=0.0))
        expected = summarise(store, "sise")
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for row in content["results"]:
        interval = expected.cells[row["subset"], row["method"], row["measure"]].interval
        assert row["mean"] == (None if interval is None else interval.mean)
    assert content["settings"]["left out"] == "bear (2)"

    second = ("--method", "centre", "--method", "sise", "--metric", "ebpg")
    done = evaluated(tiny_bundle, listing, "-o", out, "--threshold", "0", *second)
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert list(content["methods"]) == [*methods, "centre"]
    counts = {(row["method"], row["measure"]): row["pairs"] for row in content["results"] if row["subset"] == "all"}
    assert (counts["centre", "ebpg"], counts["centre", "drop"], counts["sise", "drop"]) == (4, 0, 4)


def test_other_settings_are_refused(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("-o", out, "--method", "centre", "--metric", "ebpg")
    assert evaluated(tiny_bundle, listing, *options, "--threshold", "0").returncode == 0
    line = one_line(evaluated(tiny_bundle, listing, *options))
    assert line == (
        f"{out / 'results.sqlite'}: holds results with threshold 0.0; expected 0.5, as now asked for: choose another "
        "folder, or ask as before"
    )


@needs_openvino
def test_another_device(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    options = ("--method", "ada-sise", "--metric", "ebpg", "--threshold", "0")
    means = []
    for device in (CPU, OPENVINO):
        out = tmp_path / device
        done = evaluated(tiny_bundle, listing, "-o", out, *options, "--device", device)
        assert done.returncode == 0, done.stderr
        content = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert (content["settings"]["device"], content["settings"]["precision"]) == (device, "float32")
        means.append([row["mean"] for row in content["results"]])
    assert means[0] == pytest.approx(means[1], abs=1e-3)
    assert means[0] != means[1]


def test_a_photo_that_cannot_be_read_is_told_at_the_end(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    out = tmp_path / "out"
    done = evaluated(tiny_bundle, listing, "-o", out, "--method", "centre", "--metric", "ebpg", "--threshold", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == [
        f"not explained: 1.png: {tmp_path / '1.png'}: is empty; expected a photo",
        f"error: 1 photos or pairs could not be explained; {out / 'report.html'} lists them all",
    ]
    assert "centre 2 1 0" in " ".join(done.stdout.split())


@pytest.mark.usefixtures("listing")  # which writes the photo
def test_photos_without_boxes(tiny_bundle: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("0.png,cup\n")
    done = evaluated(tiny_bundle, table, "-o", tmp_path / "out", "--threshold", "0", "--metric", "ebpg")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == f"{table}: has no boxes, so measures that need them have no value"


def test_a_reference_is_checked_before_anything_is_explained(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("-o", out, "--method", "centre", "--threshold", "0", "--reference", "sise")
    one_line(evaluated(tiny_bundle, listing, *options))
    with Store(out / "results.sqlite") as store:
        assert store.outcomes() == []


def test_no_class_scores_enough(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    done = evaluated(tiny_bundle, listing, "-o", tmp_path / "out", "--method", "centre", "--threshold", "1.5")
    assert done.returncode == 0, done.stderr
    line = "no class that is on a photo has a score of at least 1.5: there is nothing to compare"
    assert done.stderr.splitlines()[-1] == line


def test_ctrl_c_keeps_what_was_finished(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "import engine.__main__ as main, engine.explainer as explainer\n"
        "original, calls = explainer.Explainer.explain, []\n"
        "def explain(self, *arguments, **choices):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: signal.raise_signal(signal.SIGINT)\n"
        "    return original(self, *arguments, **choices)\n"
        "explainer.Explainer.explain = explain\n"
        "main.run(main.app)\n"
    )
    out = tmp_path / "out"
    options = (tiny_bundle, listing, "-o", out, "--method", "centre", "--metric", "ebpg", "--threshold", "0")
    done = evaluated(*options, code=code)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == [
        f"{out / 'results.sqlite'}: keeps all that was finished; the same command continues",
        "error: interrupted by SIGINT; nothing was left half-written",
    ]
    with Store(out / "results.sqlite") as store:
        assert len(store.outcomes()) == 2
    assert evaluated(*options).returncode == 0
    with Store(out / "results.sqlite") as store:
        assert len(store.outcomes()) == 4


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--method", "grad-cma"), "method is 'grad-cma'; expected one of ada-sise, "),
        (("--method", "sise:rule=all"), "rule: is no option of method 'sise'; expected some of mu, fusion, baseline"),
        (("--metric", "epbg"), "metric is 'epbg'; expected one of ebpg, "),
        (("--reference", "sise"), "reference is 'sise'; expected one of the methods, centre"),
        (("--metric", ""), "--metric: names nothing; expected names with commas between them, or leave it out"),
        (("--method", ","), "--method: names nothing; expected names with commas between them, or leave it out"),
        (("--sample", "0"), "sample is 0; expected a whole number of at least 1"),
        (("--device", "npu"), "device 'npu' is unknown; expected one of cpu, openvino"),
        (("--precision", "int8"), "BUNDLE: has no forward.int8.onnx, which precision 'int8' needs; export the"),
        (("--split", "val"), "LISTING: is one file, which has no split 'val'; leave the split out, or give the folder"),
    ],
)
def test_mistakes(tiny_bundle: Path, listing: Path, tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    method = () if "--method" in arguments else ("--method", "centre")
    found = one_line(evaluated(tiny_bundle, listing, "-o", tmp_path / "out", "--threshold", "0", *method, *arguments))
    assert found.replace(str(listing), "LISTING").replace(str(tiny_bundle), "BUNDLE").startswith(line)


def test_places_for_the_results(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    line = one_line(evaluated(tiny_bundle, listing, "-o", tiny_bundle / "out"))
    assert line == f"{tiny_bundle / 'out'}: lies in the bundle, which holds its own files only; choose another place"
    line = one_line(evaluated(tiny_bundle, listing, "-o", tmp_path / "none" / "out"))
    assert line == f"{tmp_path / 'none' / 'out'}: cannot be made: No such file or directory; expected a folder"


def test_progress_is_shown_in_a_terminal(tiny_bundle: Path, listing: Path, tmp_path: Path) -> None:
    out, drawn = run_in_terminal(
        "evaluate", tiny_bundle, listing, "-o", tmp_path / "out", "--threshold", "0", "--threads", "1"
    )
    assert re.search(r"[01]\.png, ada-sise .*\d/4 .*\d:\d\d:\d\d", drawn)
    assert "\x1b" not in out
