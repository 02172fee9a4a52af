"""How fast and how faithful each way to an explanation is: forward passes and time against measures and likeness.

`python -m benchmarks.budget WORK -o docs/how-fast-how-faithful.md` explains all photos of ../shared/assets with both
VOC-20 networks in every way that can run here, and writes its tables into the page, between two lines that say so, the
figures beside it as JSON, and a picture for each network. It takes an hour, keeps what it has in the folder WORK, and
goes on from there; what cannot run here is told and left out. `--time` measures only how long each way takes, all in
turn, and should have the machine for itself for ten minutes.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import engine
from benchmarks import subjects, torch_eager
from benchmarks.budget_picture import draw
from benchmarks.budget_table import figures_of, tables_of
from benchmarks.machine import machine, write_between
from benchmarks.pairs import alternate, spread, summary
from benchmarks.remembered import RememberingExplainer
from benchmarks.rivals import OPENVINO_PYTHON, OpenvinoXai, UnavailableError, grad_cam_score_cam, versions
from benchmarks.ways import (
    BUDGETS,
    EXACT,
    OTHERS,
    OURS,
    SAMPLED,
    Budgeted,
    Elsewhere,
    EqualScores,
    ExactHeatmaps,
    Find,
    Likeness,
    Strongest,
    find_with,
)
from benchmarks.which_method import ASSETS, MODELS, OF_PAPER, bundle_of, photos
from engine.backends import create_backend
from engine.bundle import Bundle, load_bundle
from engine.errors import EngineError
from engine.evaluation import Choice, Store, evaluate
from engine.export import export
from engine.methods import METHODS
from engine.spelling import parse_method

PAGE_MARKS = ("<!-- Tables by benchmarks.budget begin here. -->", "<!-- They end here. -->")
SCORE_CAM, AISE, RECIPRO_CAM = "pytorch-grad-cam Score-CAM", "openvino-xai AISE", "openvino-xai Recipro-CAM"
PRECISIONS = {"int8": ("cpu", "int8"), "OpenVINO bfloat16": ("openvino", "bfloat16")}
SLOW = ("sise", "score-cam", *SAMPLED, SCORE_CAM, AISE)
_ROUNDS, _SLOW_ROUNDS = 5, 2
CALIBRATION = tuple(ASSETS / "images" / name for name in ("voc/JPEGImages", "other"))
"""Photos that nothing here is measured on."""
_TORCH_MASKS_A_LAYER = 26

Report = dict[str, Any]


def main() -> None:
    """Measure the ways, or time them, and write the tables and pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=main.__doc__)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for bundles, scores and results")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md", help="page that has the tables")
    parser.add_argument("--sample", type=int, default=6, help="photos for ways that take a minute each; 6")
    parser.add_argument("--openvino-xai", type=Path, default=OPENVINO_PYTHON, metavar="PYTHON", help="its interpreter")
    parser.add_argument("--time", action="store_true", help="time the ways, and measure nothing else")
    parser.add_argument("--tables", action="store_true", help="write the tables from what the folder has")
    arguments = parser.parse_args()
    figures = arguments.output.with_suffix(".json")
    report: Report = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    for name in MODELS:
        entry = report.setdefault(name, {})
        bundle = load_bundle(bundle_of(name, arguments.work))
        with ExitStack() as stack:
            store = stack.enter_context(Store(arguments.work / f"{name}.sqlite"))
            if not arguments.tables:
                finds, entry["left out"] = stack.enter_context(elsewhere(name, bundle, arguments))
                if arguments.time:
                    entry["times"] = time_ways(bundle, store, finds)
                    entry["timed on"] = machine() | versions()
                else:
                    measure(bundle, store, finds, arguments)
                    entry["measured on"] = machine() | versions()
            entry |= figures_of(store)
        write(report, arguments.output)
    if arguments.time:
        report["resnet50"] = time_resnet50(arguments.work)
        write(report, arguments.output)


def write(report: Report, output: Path) -> None:
    """Write the figures, the tables into their place in the page, and the pictures."""
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    output.with_suffix(".json").write_text(text, encoding="utf-8")
    pictures = {name: Path("images") / f"{output.stem}-{name}.png" for name in MODELS if "ways" in report.get(name, {})}
    for name, picture in pictures.items():
        draw(report[name], name, output.parent / picture)
    write_between(output, PAGE_MARKS, tables_of(report, pictures))


@contextmanager
def elsewhere(
    name: str, bundle: Bundle, arguments: argparse.Namespace
) -> Iterator[tuple[dict[str, Find], dict[str, str]]]:
    """Give what explains by other means than the float32 explainer, by what tables call it; and why others cannot."""
    finds: dict[str, Find] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        for precision, (device, number) in PRECISIONS.items():
            try:
                path = bundle.path if number != "int8" else int8_bundle(name, arguments.work)
                if arguments.time:
                    explainer = stack.enter_context(engine.load(path, device=device, precision=number))
                else:
                    explainer = stack.enter_context(remembering(path, arguments.work, device, number))
                finds |= {f"{way}, {precision}": find_with(explainer, way) for way in OURS}
            except (EngineError, UnavailableError) as err:
                left_out[f"ada-sise, {precision}"] = str(err)
        try:
            finds[SCORE_CAM] = grad_cam_score_cam(bundle)
        except UnavailableError as err:
            left_out[SCORE_CAM] = str(err)
        try:
            source = ASSETS / "models" / name / "model.onnx"
            package = stack.enter_context(OpenvinoXai(arguments.openvino_xai, source, bundle.layers[-1].name))
            finds |= {RECIPRO_CAM: package.find("recipro-cam"), AISE: package.find("aise")}
        except UnavailableError as err:
            left_out["openvino-xai"] = str(err)
        for way, reason in left_out.items():
            print(f"{name}: {way} is left out: {reason}", flush=True)
        yield finds, left_out


def remembering(bundle: Path, work: Path, device: str = "cpu", precision: str = "float32") -> RememberingExplainer:
    """Return an explainer that scores no mask twice."""
    explainer = RememberingExplainer(load_bundle(bundle), create_backend(device), precision)
    explainer.folder = work / "scores"
    explainer.folder.mkdir(exist_ok=True)
    return explainer


def int8_bundle(name: str, work: Path) -> Path:
    """Return a bundle of a model with an int8 scorer, which is exported once.

    It is one of its own, so that what was measured in float32 stays when the quantization changes.

    Raises:
        EngineError: The export refuses.
    """
    files, bundle = ASSETS / "models" / name, work / f"{name}.int8.ada"
    if not bundle.exists():
        export(
            files / "model.onnx",
            bundle,
            preprocess=files / "preprocess.json",
            labels=files / "labels.txt",
            activation="sigmoid",
            int8=True,
            calibrate=CALIBRATION,
        )
    return bundle


def measure(bundle: Bundle, store: Store, finds: Mapping[str, Find], arguments: argparse.Namespace) -> None:
    """Measure every way on all pairs, or on a sample where it takes long, unless the store has it."""
    explainer = remembering(bundle.path, arguments.work)
    metrics = (*OF_PAPER, Likeness(exact=ExactHeatmaps(explainer)))
    others = {way: Elsewhere(way=way, find=find) for way, find in finds.items()}
    curves = [form(masks=count) for form in (Budgeted, Strongest) for count in BUDGETS]
    on_all = [*OURS, *curves, EqualScores(), *OTHERS, *(other for way, other in others.items() if way not in SLOW)]
    on_sample = [*SAMPLED, *(other for way, other in others.items() if way in SLOW)]
    began = time.perf_counter()

    def progress(what: str, done: int, planned: int) -> None:
        print(f"{bundle.path.name}: {what}, {done} of {planned}, {time.perf_counter() - began:.0f} s", flush=True)

    for methods, sample in ((on_all, None), (on_sample, arguments.sample)):
        evaluate(explainer, photos(), methods, metrics, store, Choice(sample=sample), progress=progress)


def time_ways(bundle: Bundle, store: Store, finds: Mapping[str, Find]) -> Report:
    """Time what was measured, in turn, on the pair whose exact explanation has as many masks as the median one.

    Returns:
        By way the median milliseconds, the least and the most, and how many rounds there were.
    """
    exact = sorted(
        (outcome for outcome in store.outcomes() if outcome.method == EXACT), key=lambda outcome: outcome.scored or 0
    )
    pair = exact[len(exact) // 2]
    photo = next(sample.photo for sample in photos().samples if sample.name == pair.photo)
    with engine.load(bundle.path) as explainer:
        image = explainer.probe(photo).image

        def of_engine(way: str) -> Callable[[], float]:
            method = parse_method(way, METHODS)
            explainer.explain(image, pair.target, method=method, max_masks=16)  # nobody counts the first
            return lambda: explainer.explain(image, pair.target, method=method).timings_ms["total"]

        def of_other(way: str) -> Callable[[], float]:
            if way not in SLOW:
                finds[way](image, pair.target)
            return lambda: finds[way](image, pair.target).milliseconds

        measured = figures_of(store)["ways"]
        ways = {way: of_engine(way) for way in (*OURS, *OTHERS, *SAMPLED) if way in measured}
        ways |= {way: of_other(way) for way in finds if way in measured}
        times: Report = {}
        for slow, rounds in ((False, _ROUNDS), (True, _SLOW_ROUNDS)):
            taken = alternate({way: run for way, run in ways.items() if (way in SLOW) == slow}, rounds)
            times |= {way: summary([results[way] for results in taken]) | {"rounds": rounds} for way in taken[0]}
    for way, of_way in times.items():
        print(f"{bundle.path.name}: {way} {of_way['median']:.0f} ms", flush=True)
    return times


def time_resnet50(work: Path) -> Report:
    """Time exact SISE of a ResNet-50 with random weights in eager torch against `fast`, in turn.

    `fast` scores in int8. Torch scores some masks only; what all would take follows from its masks a second.
    """
    folder = work / "resnet50"
    folder.mkdir(exist_ok=True)
    subject = subjects.make("resnet50", folder)
    path = folder / "resnet50.int8.ada"
    preprocess = ASSETS / "models" / "resnet50-thin-voc20" / "preprocess.json"
    options = {"activation": "softmax", "int8": True, "calibrate": CALIBRATION, "force": True}
    export(subject.source, path, preprocess=preprocess, **options)
    bundle = load_bundle(path)
    # Random weights may agree too little for use; the time that the scorer takes does not depend on it.
    usable = {**bundle.manifest, "int8": {**bundle.manifest["int8"], "usable": True}}
    image, network = subject.x(), subject.network()
    with engine.Explainer(replace(bundle, manifest=usable), create_backend("cpu"), "int8") as explainer:
        masks = explainer.explain(image, subject.target, method="sise", max_masks=1).scorable
        channels = [torch.arange(_TORCH_MASKS_A_LAYER) for _ in explainer.bundle.layers]

        def in_torch() -> float:
            made = torch_eager.explain(
                network, torch.from_numpy(image), subject.target, activation="softmax", channels=channels
            )
            return 1e3 * (made.total_s - made.score_s + masks * made.score_s / made.masks)

        def fast() -> float:
            return explainer.explain(image, subject.target, preset="fast").timings_ms["total"]

        in_torch(), fast()
        rounds = alternate({"torch": in_torch, "fast": fast}, _ROUNDS)
    ratios = [results["torch"] / results["fast"] for results in rounds]
    return {
        "machine": machine(),
        "masks": masks,
        **{way: summary([results[way] for results in rounds]) for way in ("torch", "fast")},
        "ratio": summary(ratios) | {"spread": spread(ratios)},
        "rounds": len(rounds),
    }


if __name__ == "__main__":
    main()
