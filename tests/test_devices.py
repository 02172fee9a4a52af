"""The whole path on every device: methods, measures and the reference, in float32 and in cheaper precisions."""

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import engine
from engine.errors import BackendError, OptionError
from engine.export import export
from engine.image import prepare
from engine.methods import METHODS
from tests.comparison import Case
from tests.devices import OPENVINO, needs_openvino
from tests.models import IMAGENET, MODELS, PHOTOS, Exported
from tests.reference import agreement
from tests.reference.network import TorchNetwork
from tests.tiny_cnn import photo_pixels

pytestmark = needs_openvino
MEAN = 1e-4  # (e) of design.md, section 3, Agreement
_inherited: list[engine.Explainer] = []


@pytest.fixture(scope="module")
def explainer(tiny_bundle: Path) -> engine.Explainer:
    return engine.load(tiny_bundle, device=OPENVINO, threads=2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_map_of_onnx_runtime(
    tiny_bundle: Path, explainer: engine.Explainer, method: str
) -> None:
    # Its steps magnify a difference in the last bit, so there are few of them.
    options = {"iterations": 5} if method == "extremal-perturbation" else {}
    expected = engine.load(tiny_bundle, threads=1).explain(photo_pixels(), method=method, **options)
    found = explainer.explain(photo_pixels(), method=method, **options)
    assert (found.target, found.scored, found.evaluations) == (expected.target, expected.scored, expected.evaluations)
    assert found.class_score == pytest.approx(expected.class_score, abs=1e-5)
    assert expected.heatmap.any()
    assert np.abs(found.heatmap - expected.heatmap).mean() <= MEAN


@pytest.mark.parametrize(
    "name", [name if name == "squeezenet1.1" else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_openvino_agrees_with_the_reference(name: str, assets: Path, tmp_path: Path) -> None:
    folder = assets / "models" / name
    source = folder / "model.onnx"
    activation = "softmax" if MODELS[name] == IMAGENET else "sigmoid"
    export(source, tmp_path / "own.ada", preprocess=folder / "preprocess.json", activation=activation)
    explainer = engine.load(tmp_path / "own.ada", device=OPENVINO)
    bundle, photo = explainer.bundle, assets / "images" / PHOTOS[MODELS[name]][0]
    x = prepare(photo, bundle.preprocess, bundle.image_shape).array
    model = Exported(source=source, explainer=explainer, activation=activation)
    case = Case(model, photo, x, TorchNetwork(source), device=OPENVINO)
    case.check_average_gradients()
    alpha = [layer[0] for layer in case.alpha]
    result = explainer.explain(photo, visualization_maps=True)
    case.check(result, alpha, "otsu", "hard")
    agreement.assert_proves_something(
        case.logits, alpha, np.concatenate([layer.scores for layer in result.layers]), trained=True
    )


def test_bfloat16_is_for_masks_only(tiny_bundle: Path, explainer: engine.Explainer) -> None:
    try:
        cheaper = engine.load(tiny_bundle, device=OPENVINO, precision="bfloat16", threads=2)
    except BackendError as err:
        pytest.skip(str(err))
    exact, found = explainer.explain(photo_pixels()), cheaper.explain(photo_pixels())
    assert (exact.precision, found.precision) == ("float32", "bfloat16")
    assert found.class_score == exact.class_score
    assert found.evaluations == {"tapped": 1, "forward.bfloat16": exact.evaluations["forward"]}
    for layer, same in zip(found.layers, exact.layers, strict=True):
        np.testing.assert_array_equal(layer.selected_channels, same.selected_channels)
        assert layer.threshold == same.threshold
    scores, others = (np.concatenate([layer.scores for layer in result.layers]) for result in (found, exact))
    assert 0 < np.nanmax(np.abs(scores - others)) < 0.05


def test_precisions_of_each_device(tiny_bundle: Path) -> None:
    text = r"^precision is 'bfloat16'; expected one of float32, int8 on this device$"
    with pytest.raises(OptionError, match=text):
        engine.load(tiny_bundle, precision="bfloat16")
    text = r"^precision is 'float16'; expected one of float32, bfloat16, int8 on this device$"
    with pytest.raises(OptionError, match=text):
        engine.load(tiny_bundle, device=OPENVINO, precision="float16")


def test_any_batch_size_threads_and_calls_at_once_give_the_same_bytes(tiny_bundle: Path) -> None:
    expected = engine.load(tiny_bundle, device=OPENVINO, threads=1).explain(photo_pixels()).heatmap.tobytes()
    for threads, lanes in ((1, 1), (2, 2), (2, 1)):
        explainer = engine.load(tiny_bundle, device=OPENVINO, threads=threads, lanes=lanes)
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(explainer.explain, photo_pixels(), batch_size=size) for size in (1, 3, 8, 64)]
            assert {future.result().heatmap.tobytes() for future in futures} == {expected}


def explain_with_what_was_inherited() -> bytes | str:
    try:
        return _inherited[0].explain(photo_pixels()).heatmap.tobytes()
    except BackendError as err:
        return str(err)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12, of any program with threads
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_process_and_its_parents_explainer(tiny_bundle: Path, threads: int) -> None:
    explainer = engine.load(tiny_bundle, device=OPENVINO, threads=threads)
    _inherited[:] = [explainer]
    expected = explainer.explain(photo_pixels()).heatmap.tobytes()
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        found = pool.submit(explain_with_what_was_inherited).result(timeout=60)
    assert re.search(
        r"tapped\.onnx: was opened by process \d+, and its threads did not survive the fork into process \d+; load the "
        r"bundle in each process$",
        str(found),
    )
    assert explainer.explain(photo_pixels()).heatmap.tobytes() == expected
