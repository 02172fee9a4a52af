"""`explain.onnx` as a whole: what a host sees of it, against the engine."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import engine
from engine.export import export
from engine.export.explain import single_file, verify
from engine.export.explain.single_file import write_single_file
from engine.image import prepare
from engine.preprocess import INTERPOLATIONS, Preprocess
from tests.tiny_cnn import HEIGHT, LABELS, WIDTH, photo_pixels, write_tiny_cnn

MASKS = 16
"""So many masks tiny_cnn gives for the photo and its top-1 class, at the most."""


def opened(graph: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(graph))


def answer(graph: onnxruntime.InferenceSession, image: np.ndarray, target: int = -1, max_masks: int = 0):
    found = graph.run(None, {"image": image, "target": np.array([target]), "max_masks": np.array([max_masks])})
    return dict(zip([value.name for value in graph.get_outputs()], found, strict=True))


@pytest.fixture(scope="module")
def explainer(tiny_bundle: Path) -> engine.Explainer:
    return engine.load(tiny_bundle)


@pytest.fixture(scope="module")
def x(explainer: engine.Explainer) -> np.ndarray:
    bundle = explainer.bundle
    return prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array


def check(found: dict[str, np.ndarray], result: engine.Explanation) -> None:
    np.testing.assert_allclose(found["heatmap"], result.heatmap, rtol=0, atol=1e-6)
    assert found["target_index"].tolist() == [result.target]
    np.testing.assert_allclose(found["class_score"], [result.class_score], rtol=1e-6)
    assert found["selected"].tolist() == [layer.selected for layer in result.layers]
    assert found["scored"].tolist() == [layer.scored for layer in result.layers]


@pytest.mark.parametrize("target", [-1, *range(len(LABELS))])
def test_every_class(target: int, explainer: engine.Explainer, x: np.ndarray) -> None:
    found = answer(opened(explainer.bundle.explain), x, target)
    check(found, explainer.explain(x, None if target == -1 else target))
    np.testing.assert_allclose(
        np.exp(found["logits"][0]) / np.exp(found["logits"]).sum(), explainer.classify(x), rtol=1e-5
    )


@pytest.mark.parametrize("max_masks", range(1, MASKS + 3))
def test_every_budget(max_masks: int, explainer: engine.Explainer, x: np.ndarray) -> None:
    result = explainer.explain(x, max_masks=max_masks)
    check(answer(opened(explainer.bundle.explain), x, max_masks=max_masks), result)
    assert result.scored == min(max_masks, result.scorable)


def test_what_a_host_sees(explainer: engine.Explainer) -> None:
    graph = opened(explainer.bundle.explain)
    inputs = [(value.name, value.type, value.shape) for value in graph.get_inputs()]
    assert inputs == [
        ("image", "tensor(float)", [1, 3, HEIGHT, WIDTH]),
        ("target", "tensor(int64)", [1]),
        ("max_masks", "tensor(int64)", [1]),
    ]
    assert [(value.name, value.type, value.shape) for value in graph.get_outputs()] == [
        ("heatmap", "tensor(float)", [HEIGHT, WIDTH]),
        ("target_index", "tensor(int64)", [1]),
        ("class_score", "tensor(float)", [1]),
        ("logits", "tensor(float)", [1, len(LABELS)]),
        ("selected", "tensor(int64)", [3]),
        ("scored", "tensor(int64)", [3]),
    ]
    facts = graph.get_modelmeta().custom_metadata_map
    assert facts["labels"].split("\n") == list(LABELS)
    assert facts["layers"].split("\n") == [layer.name for layer in explainer.bundle.layers]
    assert facts["activation"] == "softmax"


def test_the_network_is_in_one_loop_with_its_weights(tiny_bundle: Path) -> None:
    """Both copies of a weight are the same bytes of weights.bin; no operator is of another domain than ONNX's."""
    onnx.checker.check_model(str(tiny_bundle / "explain.onnx"), full_check=True)
    graph = onnx.load(tiny_bundle / "explain.onnx", load_external_data=False).graph
    graphs = [(node, attribute.g) for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    with_network = [
        (node.op_type, body) for node, body in graphs if any(entry.op_type == "Conv" for entry in body.node)
    ]
    ((op_type, body),) = with_network
    assert op_type == "Loop"
    convolutions = [node for node in body.node if node.op_type == "Conv"]
    inside = {tensor.name: tensor for tensor in body.initializer}
    assert all(node.input[1] in inside for node in convolutions)
    places = {entry.value for node in convolutions for entry in inside[node.input[1]].external_data}
    forward = onnx.load(tiny_bundle / "forward.onnx", load_external_data=False).graph
    of_forward = {tensor.name: tensor for tensor in forward.initializer}
    weights = [of_forward[node.input[1]] for node in forward.node if node.op_type == "Conv"]
    assert places == {entry.value for tensor in weights for entry in tensor.external_data} > {"weights.bin"}
    assert {node.domain for node in graph.node} == {""}
    assert {node.domain for _, body in graphs for node in body.node} == {""}


def test_a_source_that_uses_the_names_of_outputs(tmp_path: Path) -> None:
    path, preprocess, _ = write_tiny_cnn(tmp_path)
    model = onnx.load(path)
    names = {"image": "logits", "relu1": "image", "relu3": "heatmap", "logits": "scored", "w1": "selected"}
    names |= {"conv1": "max_masks", "conv2": "Mul_7", "w2": "constant_6", "conv3": "scores_2", "features": "target"}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = names.get(value.name, value.name)
    onnx.save(model, path)
    bundle = export(path, tmp_path / "odd.ada", preprocess=preprocess, activation="softmax").bundle
    with engine.load(bundle.path) as explainer:
        image = prepare(photo_pixels(), bundle.preprocess, bundle.image_shape).array
        check(answer(opened(bundle.explain), image, 2), explainer.explain(image, 2))


def settings(**changes: object) -> Preprocess:
    usual = {"resize": 37, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    return Preprocess.from_json({**usual, **changes}, image_shape=(3, HEIGHT, WIDTH), origin="test")


def photos(random: np.random.Generator) -> list[np.ndarray]:
    """Blobs, noise, pixels of extremes; larger and smaller than the network's input, wide and high, one pixel."""
    extremes = random.choice([0, 255], (91, 61, 3)).astype(np.uint8)
    noise = random.integers(0, 256, (50, 333, 3), np.uint8)
    return [photo_pixels(), noise, extremes, photo_pixels(13, 17), photo_pixels(201, 40), noise[:1, :1]]


RESIZE = Image.Image.resize


def rows_first(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Since version 13 Pillow resizes columns first, now and then."""
    return RESIZE(RESIZE(image, (size[0], image.height), resample), size, resample)


@pytest.mark.parametrize("interp", INTERPOLATIONS)
@pytest.mark.parametrize("resize", ["stretch", 37])
def test_photos_are_prepared_as_pillow_does(
    interp: str, resize: object, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = settings(interp=interp, resize=resize, bgr=resize == 37)
    graph = verify.preparation(preprocess, 18)
    step = 1 / (preprocess.scale * np.array(preprocess.std))[:, None, None]
    for photo in photos(random):
        (found,) = graph.run([photo])
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "resize", rows_first)
            expected = prepare(photo, preprocess, (3, HEIGHT, WIDTH)).array
        assert (np.abs(found - expected) / step).max() < 0.001  # the same pixels


def test_grey_photos_are_prepared_as_pillow_does(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess.from_json({"mean": 0.5, "std": 0.2}, image_shape=(1, 20, 20), origin="test")
    for photo in photos(random):
        (found,) = verify.preparation(preprocess, 18).run([photo])
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "resize", rows_first)
            expected = prepare(photo, preprocess, (1, 20, 20)).array
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("interp", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("sides", [(224, 224), (64, 64), (300, 224), (192, 7)])
def test_pixels_half_way_between_two_colours(interp: str, sides: tuple[int, int], random: np.random.Generator) -> None:
    """Enlarged a little, many of them are: they are rounded as Pillow rounds them."""
    preprocess = Preprocess(
        size=(224, 224), resize=256, interp=interp, scale=1.0, bgr=False, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    photo = random.integers(0, 256, (*sides, 3), np.uint8)
    (found,) = verify.preparation(preprocess, 18).run([photo])
    np.testing.assert_array_equal(found, prepare(photo, preprocess, (3, 224, 224)).array)


@pytest.mark.parametrize("interp", INTERPOLATIONS)
def test_a_very_long_photo(interp: str, random: np.random.Generator) -> None:
    """Only the pixels that are left after the crop are made: whole, the photo would have 256 x 36,571 of them."""
    preprocess = Preprocess(
        size=(32, 32), resize=256, interp=interp, scale=1.0, bgr=False, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    photo = random.integers(0, 256, (1000, 7, 3), np.uint8)
    (found,) = verify.preparation(preprocess, 18).run([photo])
    np.testing.assert_array_equal(found, prepare(photo, preprocess, (3, 32, 32)).array)


def test_a_photo_is_explained_in_one_file(explainer: engine.Explainer, tmp_path: Path) -> None:
    model, preprocess, labels = write_tiny_cnn(tmp_path)
    alone = tmp_path / "alone" / "explain.onnx"
    alone.parent.mkdir()
    options = {"preprocess": preprocess, "labels": labels, "activation": "softmax", "embed_preprocess": True}
    report = export(model, single_file=alone, **options)
    assert report.written == (alone,)
    assert report.bundle.path == alone
    assert [file.name for file in alone.parent.iterdir()] == ["explain.onnx"]
    graph = opened(alone)
    assert (graph.get_inputs()[0].type, graph.get_inputs()[0].shape) == ("tensor(uint8)", ["height", "width", 3])
    photo = photo_pixels(77, 50)
    found, result = answer(graph, photo, 1), explainer.explain(photo, 1)
    assert found["selected"].tolist() == [layer.selected for layer in result.layers]
    np.testing.assert_allclose(found["heatmap"], result.heatmap, atol=1e-5)
    both = export(model, tmp_path / "both.ada", single_file=tmp_path / "both.onnx", **options)
    assert (tmp_path / "both.onnx").read_bytes() == alone.read_bytes()
    assert answer(opened(both.bundle.explain), photo, 1)["heatmap"].tobytes() == found["heatmap"].tobytes()


def test_a_single_file_holds_all_weights(tiny_bundle: Path, explainer: engine.Explainer, x: np.ndarray, tmp_path: Path):
    file = tmp_path / "one.onnx"
    write_single_file(explainer.bundle, file)
    onnx.checker.check_model(str(file), full_check=True)
    found, right = (answer(opened(path), x) for path in (file, tiny_bundle / "explain.onnx"))
    assert found["heatmap"].tobytes() == right["heatmap"].tobytes()


def test_a_single_file_that_is_too_large(explainer: engine.Explainer, tmp_path: Path) -> None:
    for largest in (1000, 30_000):  # seen before and after all is in one message
        with pytest.raises(engine.ModelError, match=r"one\.onnx: would hold 0\.0 GB, since .* has at most 0\.0 GB"):
            write_single_file(explainer.bundle, tmp_path / "one.onnx", largest)
        assert not list(tmp_path.iterdir())
    assert single_file._LARGEST == 2**31 - 1


@pytest.mark.parametrize(
    ("file", "force", "text"),
    [
        ("there.onnx", False, "there.onnx: exists already; choose another name, or replace it with --force"),
        ("folder", True, "folder: is no file; expected the name of one"),
        ("none/one.onnx", False, "one.onnx: cannot be written: there is no folder "),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_at_once(file: str, force: bool, text: str, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    steps: list[str] = []
    with pytest.raises(engine.OptionError, match=text):
        export(
            write_tiny_cnn(tmp_path)[0], single_file=tmp_path / file, activation="none", force=force, step=steps.append
        )
    assert (steps, (tmp_path / "there.onnx").read_bytes()) == ([], b"mine")


def test_a_single_file_that_would_destroy_something(tmp_path: Path) -> None:
    model, preprocess, _ = write_tiny_cnn(tmp_path)
    for file in (model, preprocess):
        before = file.read_bytes()
        with pytest.raises(engine.OptionError, match="is read by the export; choose another name for the single file"):
            export(model, single_file=file, preprocess=preprocess, activation="none", force=True)
        assert file.read_bytes() == before
    with pytest.raises(engine.OptionError, match=r"a\.ada: lies in the bundle, which holds its own files only"):
        export(model, tmp_path / "a.ada", single_file=tmp_path / "a.ada", activation="none")
    with pytest.raises(engine.OptionError, match=r"int8 is part of a bundle; expected an output NAME\.ada with --int8"):
        export(model, single_file=tmp_path / "x.onnx", activation="none", preprocess=preprocess, int8=True)


def test_options_that_say_nothing(tmp_path: Path) -> None:
    model, _, _ = write_tiny_cnn(tmp_path)
    with pytest.raises(engine.OptionError, match=r"nothing is to be written; expected an output NAME\.ada, a single"):
        export(model, activation="none")
    with pytest.raises(
        engine.OptionError, match="embed_preprocess is asked for without settings to embed; expected --pr"
    ):
        export(model, tmp_path / "a.ada", activation="none", embed_preprocess=True)


def test_another_count_of_masks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = write_tiny_cnn(tmp_path)
    monkeypatch.setattr("engine.export.explain.select.TAU_TOLERANCE", -1.0)  # no split is good enough
    with pytest.raises(
        engine.VerificationError, match=r"explain\.onnx: has explained class \[.\], with .* expected, as"
    ):
        export(model, tmp_path / "a.ada", activation="softmax")
    assert not (tmp_path / "a.ada").exists()


def test_another_heatmap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = write_tiny_cnn(tmp_path)
    monkeypatch.setattr(sys.modules["engine.export.explain.fuse"], "_BINS", 7)  # fuse is a function too
    with pytest.raises(engine.VerificationError, match=r"explain\.onnx: its heatmap differs from the engine's by "):
        export(model, tmp_path / "a.ada", activation="softmax")
    assert not (tmp_path / "a.ada").exists()


def test_another_preparation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, preprocess, _ = write_tiny_cnn(tmp_path)
    monkeypatch.setattr("engine.image._RESAMPLING", dict.fromkeys(INTERPOLATIONS, Image.Resampling.BOX))
    with pytest.raises(
        engine.VerificationError, match=r"a photo that it resizes \(bilinear\) differs from the engine's"
    ):
        export(model, tmp_path / "a.ada", activation="softmax", preprocess=preprocess, embed_preprocess=True)


def test_what_is_not_finite_gives_no_heatmap(explainer: engine.Explainer, x: np.ndarray) -> None:
    graph, image = opened(explainer.bundle.explain), np.full_like(x, 3e38)
    image[..., ::2] = -3e38
    with pytest.raises(engine.ImageError, match="computes NaN or infinity"):
        explainer.explain(image)
    assert np.isnan(answer(graph, image)["heatmap"]).all()
    assert np.isfinite(answer(graph, x)["heatmap"]).all()
