import hashlib
import importlib.metadata
import json
import resource
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest

import engine
from engine.bundle import Layer, load_bundle, sha256_of
from engine.errors import EngineError, ModelError, OptionError, UnsupportedOpError
from engine.export import ExportReport, export
from engine.preprocess import Preprocess
from tests.export.networks import CNN_LAYERS, network, node, small_cnn, weight, written

LABELS = ["tabby cat", "bull mastiff", "espresso", "cup", "wool"]
SETTINGS = {"resize": 20, "interp": "bicubic", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


@pytest.fixture
def model(random: np.random.Generator, tmp_path: Path) -> Path:
    return written(small_cnn(random, ending="Softmax"), tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "preprocess.json").write_text(json.dumps(SETTINGS))
    return tmp_path / "preprocess.json"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return tmp_path / "labels.txt"


@pytest.fixture
def report(model: Path, settings: Path, labels: Path, tmp_path: Path) -> ExportReport:
    return export(model, tmp_path / "small.ada", preprocess=settings, labels=labels)


def refusal(model: Path, kind: type[EngineError], **options: object) -> str:
    """What the export says; it may leave nothing behind."""
    before = sorted(model.parent.iterdir())
    with pytest.raises(kind) as caught:
        export(model, model.parent / "new.ada", **options)
    assert sorted(model.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundle_holds_its_files_and_nothing_else(report: ExportReport) -> None:
    blocks = ["block1", "block2", "block3", "head"]
    assert sorted(file.name for file in report.bundle.path.iterdir()) == sorted(
        [
            "manifest.json",
            "weights.bin",
            "forward.onnx",
            "last_layer.onnx",
            "explain.onnx",
            "tapped.onnx",
            "gradient.onnx",
            "full_gradient.onnx",
            *(f"{block}.onnx" for block in blocks),
            *(f"{block}.grad.onnx" for block in blocks),
        ]
    )
    for graph in report.bundle.path.glob("*.onnx"):
        onnx.checker.check_model(str(graph), full_check=True)


def test_manifest(report: ExportReport, model: Path) -> None:
    manifest = json.loads((report.bundle.path / "manifest.json").read_text(encoding="utf-8"))
    schema = json.loads(files("engine").joinpath("manifest.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, schema, cls=jsonschema.Draft202012Validator)

    listed, checks, versions, _ = (manifest.pop(key) for key in ("files", "verification", "versions", "sha256"))
    assert manifest == {
        "schema_version": 4,
        "source": {"sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "output": "scores"},
        "opset": 18,
        "ir_version": 10,
        "input": {"name": "x", "dtype": "float32", "layout": "NCHW", "channels": 3, "height": 16, "width": 12},
        "output": {"name": "logits", "classes": 5},
        "activation": "softmax",
        "layers": [
            {"name": name, "channels": channels, "height": height, "width": width}
            for name, channels, height, width in CNN_LAYERS
        ],
        "biases": [
            {"name": "bn1", "op": "Conv", "shape": [6, 16, 12]},
            {"name": "conv3", "op": "Conv", "shape": [8, 8, 6]},
            {"name": "logits", "op": "Gemm", "shape": [5]},
        ],
        "graphs": {
            "forward": "forward.onnx",
            "int8": None,
            "tapped": "tapped.onnx",
            "last_layer": "last_layer.onnx",
            "explain": "explain.onnx",
            "gradient": "gradient.onnx",
            "full_gradient": "full_gradient.onnx",
            "no_gradient": None,
            "blocks": [
                {"forward": "block1.onnx", "gradient": "block1.grad.onnx", "ops": {"Conv": 1, "Relu": 1}},
                {
                    "forward": "block2.onnx",
                    "gradient": "block2.grad.onnx",
                    "ops": {"Add": 1, "Conv": 2, "MaxPool": 1, "Relu": 2},
                },
                {
                    "forward": "block3.onnx",
                    "gradient": "block3.grad.onnx",
                    "ops": {"AveragePool": 1, "Clip": 1, "Conv": 1},
                },
                {
                    "forward": "head.onnx",
                    "gradient": "head.grad.onnx",
                    "ops": {"Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1},
                },
            ],
        },
        "preprocess": {**SETTINGS, "size": [16, 12], "scale": 255.0, "bgr": False},
        "labels": LABELS,
        "int8": None,
    }
    folder = report.bundle.path
    assert listed == {
        file.name: {"sha256": sha256_of(file), "size_bytes": file.stat().st_size}
        for file in folder.iterdir()
        if file.name != "manifest.json"
    }
    assert versions == {
        "engine": engine.__version__,
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "onnx_ir": importlib.metadata.version("onnx-ir"),
        "onnxruntime": onnxruntime.__version__,
    }
    assert checks == report.verification.rounded()
    assert set(checks["gradient_errors"]) == {"block1", "block2", "block3", "head"}
    assert set(checks["average_gradient_errors"]) == {"relu1", "relu3", "clip4"}


def test_report(report: ExportReport, tmp_path: Path) -> None:
    bundle = report.bundle
    assert bundle.path == tmp_path / "small.ada"
    assert (bundle.image_shape, bundle.classes, bundle.activation) == ((3, 16, 12), 5, "softmax")
    assert bundle.layers == tuple(
        Layer(name=name, channels=channels, height=height, width=width) for name, channels, height, width in CNN_LAYERS
    )
    assert bundle.labels == tuple(LABELS)
    assert bundle.preprocess == Preprocess(
        size=(16, 12),
        resize=20,
        interp="bicubic",
        scale=255.0,
        bgr=False,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.1),
    )
    assert report.notes == ()
    assert report.ops["block2"] == {"Conv": 2, "Relu": 2, "MaxPool": 1, "Add": 1}
    assert bundle == load_bundle(bundle.path)


def test_only_the_model_is_needed(model: Path, tmp_path: Path) -> None:
    bundle = export(model, tmp_path / "bare.ada").bundle
    assert (bundle.labels, bundle.preprocess) == (None, None)


def test_paths_may_be_texts(model: Path, settings: Path, labels: Path, tmp_path: Path) -> None:
    given = {name: str(tmp_path / name) for name in ("text.ada", "explain.onnx", "triton")}
    options = {"preprocess": str(settings), "labels": str(labels), "single_file": given["explain.onnx"]}
    bundle = export(str(model), given["text.ada"], triton=given["triton"], **options).bundle
    assert bundle.path == tmp_path / "text.ada"
    assert bundle.labels == tuple(LABELS)
    assert bundle.preprocess is not None
    assert (tmp_path / "explain.onnx").is_file()
    assert (tmp_path / "triton").is_dir()


def test_graphs_of_the_bundle_compute_the_model(report: ExportReport, model: Path, random) -> None:
    def run(graph: Path, *inputs: np.ndarray) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs, strict=True)))

    folder = report.bundle.path
    images = random.standard_normal((3, 3, 16, 12)).astype(np.float32)
    (scores,) = run(model, images)
    (logits,) = run(folder / "forward.onnx", images)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(axis=1, keepdims=True), scores, rtol=1e-4)
    value = images
    for block in ("block1", "block2", "block3", "head"):
        (value,) = run(folder / f"{block}.onnx", value)
    np.testing.assert_allclose(value, logits, rtol=1e-4, atol=1e-6)

    logits_of_first, chosen, *rest = run(folder / "tapped.onnx", images[:1], np.array([-1, 2], np.int64))
    np.testing.assert_allclose(logits_of_first, logits[:1], rtol=1e-4, atol=1e-6)
    assert chosen.tolist() == [int(scores[0].argmax()), 2]
    gradient = np.eye(5, dtype=np.float32)[chosen]
    for layer, block in ((2, "head"), (1, "block3"), (0, "block2")):
        gradient, total = run(folder / f"{block}.grad.onnx", rest[layer], gradient)
        np.testing.assert_allclose(rest[3 + layer], total, rtol=1e-3, atol=1e-5)


def test_steps_are_named_in_order(model: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    export(model, tmp_path / "small.ada", step=steps.append)
    assert steps == [
        "import",
        "cut, split, differentiate, link",
        "forward",
        "gradient of block1",
        "gradient of block2",
        "gradient of block3",
        "gradient of head",
        "tapped",
        "input gradients",
        "bundle",
        "explain",
    ]


def test_layers_may_be_named(model: Path, tmp_path: Path) -> None:
    report = export(model, tmp_path / "small.ada", layers=["relu3", "conv4"])
    assert [layer.name for layer in report.bundle.layers] == ["relu3", "conv4"]
    assert list(report.ops) == ["block1", "block2", "head"]


def test_one_channel_one_layer_and_one_logit(random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "maps", pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "logits"),
        node("Sigmoid", "logits", "y"),
    ]
    constants = {"w": weight(random, 4, 1, 3, 3), "head": weight(random, 4, 1)}
    model = written(network(nodes, constants, image=(1, 6, 5)), tmp_path)
    bundle = export(model, tmp_path / "one.ada").bundle
    assert (bundle.image_shape, bundle.classes, bundle.activation) == ((1, 6, 5), 2, "sigmoid")
    assert [layer.name for layer in bundle.layers] == ["maps"]


def with_op(op: str, position: str) -> onnx.ModelProto:
    """A network of two stages with an op in its first block or in its second."""
    random = np.random.default_rng(3)
    nodes = [
        node("Conv", "x w1", "c1", pads=[1, 1, 1, 1]),
        node(op if position == "block1" else "Relu", "c1", "a1"),
        node("Conv", "a1 w2", "c2", pads=[1, 1, 1, 1], strides=[2, 2]),
        node(op if position == "block2" else "Relu", "c2", "a2"),
        node("GlobalAveragePool", "a2", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "logits"),
        node("Softmax", "logits", "y"),
    ]
    constants = {
        "w1": weight(random, 4, 3, 3, 3),
        "w2": weight(random, 6, 4, 3, 3),
        "head": weight(random, 6, 5),
    }
    return network(nodes, constants)


def test_first_block_may_have_an_op_without_a_rule(tmp_path: Path) -> None:
    report = export(written(with_op("Sin", "block1"), tmp_path), tmp_path / "small.ada")
    (note,) = report.notes
    assert note.startswith(
        "the bundle has no gradient.onnx and full_gradient.onnx, which Ada-SISE does not need: block1 has no gradient "
        "companion: Sin node 'node_a1': operator Sin has no gradient rule; known are Abs, Add, "
    )
    bundle = report.bundle
    assert bundle.no_gradient is not None
    assert note.endswith(bundle.no_gradient)
    assert (bundle.gradient, bundle.full_gradient, bundle.biases) == (None, None, ())
    assert not any((bundle.path / name).exists() for name in ("gradient.onnx", "full_gradient.onnx"))
    checks = report.verification
    figures = (checks.image_gradient_error, checks.full_gradient_error, checks.completeness_gap)
    assert figures == (None, None, None)
    blocks = report.bundle.manifest["graphs"]["blocks"]
    assert [block["gradient"] for block in blocks] == [None, "block2.grad.onnx", "head.grad.onnx"]
    assert not (report.bundle.path / "block1.grad.onnx").exists()
    assert list(report.verification.gradient_errors) == ["block2", "head"]
    assert list(report.verification.average_gradient_errors) == ["a1", "a2"]
    assert load_bundle(report.bundle.path) == report.bundle


def test_op_without_a_rule_after_the_first_layer_is_refused(tmp_path: Path) -> None:
    model = written(with_op("Sin", "block2"), tmp_path)
    message = refusal(model, UnsupportedOpError)
    assert message.startswith(f"{model}: Sin node 'node_a2': operator Sin has no gradient rule; known are Abs, Add, ")


def test_layers_after_an_op_without_a_rule_are_the_remedy(tmp_path: Path) -> None:
    model = written(with_op("Sin", "block2"), tmp_path)
    report = export(model, tmp_path / "small.ada", layers=["a2"])
    assert report.bundle.no_gradient is not None
    assert report.bundle.no_gradient.startswith("block1 has no gradient companion: Sin node 'node_a2': ")


def test_channel_that_is_dead_does_not_stop_the_export(tmp_path: Path) -> None:
    model = with_op("Relu", "block1")
    kernel = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    kernel[:2] = 0
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "w1"))
    report = export(written(model, tmp_path), tmp_path / "small.ada")
    assert max(report.verification.gradient_errors.values()) <= 1e-6


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConvTranspose", "x up", "image", strides=[2, 2])],
        [node("Pad", "x crop", "image")],
        [node("MaxPool", "x", "image", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)],
    ],
    ids=["ConvTranspose", "Pad that crops", "MaxPool with ceil_mode"],
)
def test_first_block_may_begin_with(nodes: list[onnx.NodeProto], random: np.random.Generator, tmp_path: Path) -> None:
    constants = {
        "up": weight(random, 3, 3, 2, 2),
        "crop": np.array([0, 0, -1, 0, 0, 0, 0, -1], np.int64),
        "w": weight(random, 4, 3, 3, 3),
        "head": weight(random, 4, 5),
    }
    tail = [
        node("Conv", "image w", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "logits"),
        node("Softmax", "logits", "y"),
    ]
    model = written(network([*nodes, *tail], constants, image=(3, 8, 8)), tmp_path)
    assert [layer.name for layer in export(model, tmp_path / "small.ada").bundle.layers] == ["maps"]


def test_number_of_labels_must_fit(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog\n\n")
    message = refusal(model, OptionError, labels=path)
    assert message == f"{path}: holds 2 class names; the model has 5 classes"


def test_blank_lines_and_spaces_around_labels_do_not_count(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n a \r\nb\n\n\tc\nd d\né\n\n", encoding="utf-8")
    assert export(model, tmp_path / "new.ada", labels=path).bundle.labels == ("a", "b", "c", "d d", "é")


def test_byte_order_mark_is_no_part_of_a_label(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\nc\nd\ne\n", encoding="utf-8-sig")
    assert export(model, tmp_path / "new.ada", labels=path).bundle.labels == tuple("abcde")


def test_labels_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    message = refusal(model, OptionError, labels=path)
    assert message.startswith(f"{path}: cannot be read as text (")
    assert message.endswith("); expected one class name a line")
    path.write_bytes(b"\xff\xfe\x00c")
    assert refusal(model, OptionError, labels=path).startswith(f"{path}: cannot be read as text (")


@pytest.mark.parametrize("text", ["", "{", "mean: 0.5"])
def test_preprocessing_that_is_no_json(text: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "preprocess.json"
    path.write_text(text)
    message = refusal(model, OptionError, preprocess=path)
    assert message.startswith(f"{path}: cannot be read as JSON (")
    assert message.endswith("); expected preprocessing settings")


def test_preprocessing_that_is_nested_too_deep(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "preprocess.json"
    path.write_text("[" * 100_000)
    message = refusal(model, OptionError, preprocess=path)
    assert message.startswith(f"{path}: cannot be read as JSON (maximum recursion depth exceeded")
    assert message.endswith("); expected preprocessing settings")


def test_model_of_which_the_system_tells_nothing(tmp_path: Path) -> None:
    name = f"{'n' * 300}:make"
    with pytest.raises(ModelError) as caught:
        export(name, tmp_path / "new.ada", size=(16, 12))
    expected = "expected an ONNX file, or package.module:function"
    assert str(caught.value) == f"{name}: cannot be read: File name too long; {expected}"
    with pytest.raises(OptionError) as refused:
        export("a\0:make", tmp_path / "new.ada", size=(16, 12))
    assert str(refused.value).startswith(r"factory 'a\x00:make': a\x00 cannot be imported: ")
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_that_is_missing(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "preprocess.json"
    assert "No such file or directory" in refusal(model, OptionError, preprocess=path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ([1], "preprocessing is list; expected a JSON object"),
        ({"mean": 0.5}, "preprocessing lacks std; expected one number per channel"),
        ({**SETTINGS, "colour": "rgb"}, "unknown preprocessing keys colour; expected size, resize, interp, "),
        ({**SETTINGS, "size": [12, 16]}, "size is [12, 16]; the network takes 16×12"),
        ({**SETTINGS, "mean": [0.5, 0.5]}, "mean is [0.5, 0.5]; expected 3 finite numbers"),
    ],
)
def test_preprocessing_that_makes_no_sense(settings: object, text: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "preprocess.json"
    path.write_text(json.dumps(settings))
    assert refusal(model, OptionError, preprocess=path).startswith(f"{path}: {text}")


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"activation": "sigmoid"}, OptionError, "activation 'sigmoid' contradicts the model, which ends in Softmax "),
        ({"activation": "relu"}, OptionError, "activation 'relu' is unknown; expected one of softmax, sigmoid, none"),
        (
            {"layers": ["nowhere"]},
            ModelError,
            "MODEL: no feature layer is possible at 'nowhere'; possible are, shallow to ",
        ),
    ],
)
def test_options_that_do_not_fit(options: dict, kind: type[EngineError], text: str, model: Path) -> None:
    assert refusal(model, kind, **options).startswith(text.replace("MODEL", str(model)))


@pytest.mark.parametrize("group", [0, -1, 3, 2**63 - 1])
def test_what_onnx_runtime_does_not_run_is_refused_before_it_is_differentiated(
    group: int, random: np.random.Generator, tmp_path: Path
) -> None:
    broken = small_cnn(random, ending="Softmax")
    broken.graph.node[6].attribute[0].i = group
    path = written(broken, tmp_path)
    message = refusal(path, ModelError)
    assert message.startswith(f"{path}: the source model: ONNX Runtime ")
    assert message.endswith(
        "; expected a model that this runtime runs: export it again with an older opset, or install a newer runtime"
    )


def test_output_that_does_not_exist(model: Path) -> None:
    message = refusal(model, ModelError, output_name="logit")
    assert message == f"{model}: has no output 'logit'; its outputs are scores"


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.graph.node[3].ClearField("name"),
        lambda model: [entry.ClearField("name") for entry in model.graph.node if entry.op_type != "Conv"],
    ],
)
def test_names_of_nodes_do_not_matter(change: Callable, random: np.random.Generator, tmp_path: Path) -> None:
    proto = small_cnn(random, ending="Softmax")
    change(proto)
    assert export(written(proto, tmp_path), tmp_path / "small.ada").notes == ()


@pytest.mark.parametrize("changed", ["gone", "cut short"])
def test_model_that_changes_while_it_is_compiled(changed: str, model: Path) -> None:
    def step(name: str) -> None:
        if name == "forward":
            model.unlink() if changed == "gone" else model.write_bytes(model.read_bytes()[:-50])

    with pytest.raises(ModelError) as caught:
        export(model, model.parent / "new.ada", step=step)
    reason = f"[Errno 2] No such file or directory: '{model}'"
    if changed == "cut short":
        reason = "Error parsing message with type 'onnx.ModelProto': Wire format was corrupt"
    assert str(caught.value) == f"{model}: has changed while it was compiled: {reason}; export it again"
    assert [entry.name for entry in model.parent.iterdir()] == ([] if changed == "gone" else [model.name])


MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def test_no_room_for_the_file_that_torch_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_without_room.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "out").mkdir()
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def step(name: str) -> None:
        assert name == "export by torch"
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    try:
        with pytest.raises(ModelError) as caught:
            export("module_without_room:make", Path("out/new.ada"), size=(16, 16), step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert str(caught.value) == (
        "module_without_room:make: its ONNX file cannot be written for the time of the export: File too large; make "
        "room in the folder for temporary files, or choose another by the environment variable TMPDIR"
    )
    assert list(temporary.glob("tmp*")) == []
    assert list((tmp_path / "out").iterdir()) == []
