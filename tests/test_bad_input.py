"""Bad input on the real command lines: one clear line, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer

import engine
import engine.__main__
import engine.export.__main__
from engine.backends.onnxruntime_cpu import ONNXRUNTIME_VERSION
from engine.bundle import load_bundle
from engine.cli.console import run
from engine.errors import BundleError
from tests.export.networks import BATCH, image_input, network, node, weight, written
from tests.tiny_cnn import tiny_cnn, write_photo, write_tiny_cnn

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKED = "expected a file that onnx.checker accepts: export the model again"
WRITABLE = "expected an existing folder that may be written to and has room"
COPY = "export or copy the bundle again"


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path):
    """Run a command line in this process, which must refuse: arguments → its one line, without `error: `."""

    def call(app: typer.Typer, *arguments: object) -> str:
        before = tree(tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["engine", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            run(app)
        out, err = capfd.readouterr()
        assert (caught.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert tree(tmp_path) == before
        return err.removeprefix("error: ").removesuffix("\n")

    return call


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of its regular files, None for all else."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def exports(refusal):
    return lambda *arguments: refusal(engine.export.__main__.app, *arguments)


@pytest.fixture
def explains(refusal, tmp_path: Path):
    photo = write_photo(tmp_path / "photo.png")
    return lambda bundle: refusal(engine.__main__.app, "explain", bundle, photo, "-o", "heatmap.png")


# Models.


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = tiny_cnn()
    change(model)
    return model


def open_size(model: onnx.ModelProto) -> None:
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(image_input([BATCH, 16], "features"))


def weight_of_nan(model: onnx.ModelProto) -> None:
    values = onnx.numpy_helper.to_array(model.graph.initializer[1]).copy()
    values[3, 2, 1, 0] = np.nan
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(values, "w2"))


def op_of_a_foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type, model.graph.node[1].domain, model.graph.node[1].name = "Blur", "com.acme", "blur"
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))


def perceptron() -> onnx.ModelProto:
    nodes = [node("Flatten", "x", "flat"), node("Gemm", "flat w", "scores", transB=1)]
    return network(nodes, {"w": np.ones((5, 192), np.float32)}, outputs="scores")


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "a photo": (
        lambda: b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "is not a valid ONNX model: Error parsing message with type 'onnx.ModelProto': Wire format was corrupt; "
        + CHECKED,
    ),
    "nothing": (
        lambda: b"",
        f"is not a valid ONNX model: The model does not have an ir_version set properly; {CHECKED}",
    ),
    "half a file": (
        lambda: tiny_cnn().SerializeToString()[:-100],
        "is not a valid ONNX model: Error parsing message with type 'onnx.ModelProto': Wire format was corrupt; "
        + CHECKED,
    ),
    "an op that is none": (
        lambda: edited(lambda model: model.graph.node[1].MergeFrom(onnx.NodeProto(op_type="Rleu", name="second"))),
        "is not a valid ONNX model: No Op registered for Rleu with domain_version of 18: Bad node spec for node. Name: "
        f"second OpType: Rleu; {CHECKED}",
    ),
    "an op of a foreign domain": (
        lambda: edited(op_of_a_foreign_domain),
        "Blur node 'blur': is of the operator com.acme::Blur, none of ONNX's own; expected standard operators whose "
        "shapes ONNX can infer",
    ),
    "two inputs": (
        lambda: edited(lambda model: model.graph.input.append(image_input([BATCH, 7], "size"))),
        "has 2 inputs ('image' [N,3,24,32], 'size' [batch,7]); expected one, the image [N, C, H, W]",
    ),
    "two outputs": (
        lambda: edited(second_output),
        "has the outputs logits, features; choose the class scores with --output-name NAME",
    ),
    "no feature layer": (
        perceptron,
        "the model has no feature layer: expected a CNN with a tensor [N, C, H, W], H and W above 1, that lies between "
        "a Conv and a later Conv, Gemm or MatMul and that every path passes through; found the ops Flatten, Gemm",
    ),
    "an open size": (
        lambda: edited(open_size),
        "input 'image' [N,3,height,width] has no fixed image size; choose it with --size HEIGHTxWIDTH",
    ),
    "a weight of NaN": (
        lambda: edited(weight_of_nan),
        "initializer 'w2' [12, 8, 3, 3] holds nan at 1 of 864 elements; expected finite weights: export the model "
        "again, from a checkpoint whose training did not diverge",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_model(case: str, exports, tmp_path: Path) -> None:
    make, text = MODELS[case]
    model = make()
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    assert exports("model.onnx", "-o", "new.ada", "--activation", "softmax") == f"model.onnx: {text}"


def test_model_with_an_op_without_a_gradient_rule(exports, tmp_path: Path) -> None:
    written(edited(lambda model: model.graph.node[4].MergeFrom(onnx.NodeProto(op_type="Sin", name="wave"))), tmp_path)
    line = exports("model.onnx", "-o", "new.ada", "--activation", "softmax")
    assert line.startswith("model.onnx: Sin node 'wave': operator Sin has no gradient rule; known are Abs, Add, ")
    assert line.endswith(
        ", Where. Add one (docs/add-an-op.md in the engine's repository tells how), or choose feature layers (--layer) "
        "that come after this node"
    )


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 28, reason="this onnx does not know opset 28")
def test_model_of_an_opset_that_the_runtime_does_not_know(exports, random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "maps"),
        node("QuantizeLinear", "maps scale zero", "small"),
        node("DequantizeLinear", "small scale zero", "large"),
        node("GlobalAveragePool", "large", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "logits"),
    ]
    constants = {"w": weight(random, 4, 3, 3, 3), "head": weight(random, 4, 5)}
    constants |= {"scale": np.float32(0.1), "zero": np.int8(0)}
    written(network(nodes, constants, outputs="logits", opset=28), tmp_path)
    assert exports("model.onnx", "-o", "new.ada", "--activation", "softmax") == (
        f"model.onnx: the source model: ONNX Runtime {ONNXRUNTIME_VERSION} refused the graph: [ONNXRuntimeError] : 9 : "
        "NOT_IMPLEMENTED : Could not find an implementation for QuantizeLinear(28) node with name 'node_small'; "
        "expected a model that this runtime runs: export it again with an older opset, or install a newer runtime"
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "outside", "link"])
def test_weights_beside_the_model(damage: str, exports, tmp_path: Path) -> None:
    onnx.save(tiny_cnn(), tmp_path / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    weights = tmp_path / "w.data"
    text = "Data of TensorProto ( tensor name: w1) should be stored in ./w.data, but it is not regular file"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
        text = "External data length (320) exceeds available data (319 bytes from offset 11232) for tensor 'head'"
    elif damage == "outside":
        model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
        (location,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
        location.value = "../w.data"
        written(model, tmp_path)
        text = (
            "Data of TensorProto ( tensor name: w1) should be file inside '.', but '../w.data' points outside the "
            "directory"
        )
    else:
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
        text = "Data of TensorProto ( tensor name: w1) should be stored in ./w.data, but it is a symbolic link"
    line = exports("model.onnx", "-o", "new.ada", "--activation", "softmax")
    assert line == f"model.onnx: is not a valid ONNX model: {text}; {CHECKED}"


# Where the bundle shall be.


def test_output_that_exists(exports, tiny_bundle: Path, tmp_path: Path) -> None:
    written(tiny_cnn(), tmp_path)
    target = tmp_path / "new.ada"
    shutil.copytree(tiny_bundle, target)
    arguments = ("model.onnx", "-o", "new.ada", "--activation", "softmax")
    assert exports(*arguments) == f"{target}: exists already; choose another name, or replace it with --force"
    (target / "photo.jpg").write_bytes(b"mine")
    foreign = f"{target}: is not a bundle, so --force does not replace it; choose another name"
    assert exports(*arguments, "--force") == foreign
    assert exports("model.onnx", "-o", ".", "--force") == foreign.replace("/new.ada", "")


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir(), reason="a folder in which nobody may write is known on Linux only"
)
def test_output_that_cannot_be_written(exports, tmp_path: Path) -> None:
    written(tiny_cnn(), tmp_path)
    forbidden = Path("/sys/kernel/new.ada")
    with pytest.raises(OSError, match="new") as caught:
        forbidden.mkdir()
    for target, reason in (
        (tmp_path / "none" / "new.ada", "No such file or directory"),
        (tmp_path / "model.onnx" / "new.ada", "Not a directory"),
        (tmp_path / ("long" * 62), "File name too long"),
        (tmp_path / ("long" * 70), "File name too long"),
        (forbidden, caught.value.strerror),
    ):
        line = exports("model.onnx", "-o", target, "--activation", "softmax")
        assert line == f"{target}: cannot be written: {reason} in {target.parent}; {WRITABLE}"


# The real command line, in which no file may grow beyond a limit from a certain step on.
LIMITED = """
import resource, sys
import engine.export.compile as compile
from engine.cli.console import run
from engine.export.__main__ import app

step, limit = sys.argv.pop(1), int(sys.argv.pop(1))
right = getattr(compile, step)

def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    right(*arguments)

setattr(compile, step, limited)
run(app)
"""


@pytest.mark.parametrize(
    ("step", "limit", "replaced"),
    [("write_graphs", 5_000, False), ("write_graphs", 13_000, True), ("write_manifest", 1_000, True)],
    ids=["weights", "a graph", "the manifest"],
)
def test_disk_that_is_full(step: str, limit: int, replaced: bool, tiny_bundle: Path, tmp_path: Path) -> None:
    written(tiny_cnn(seed=1), tmp_path)
    target = tmp_path / "new.ada"
    if replaced:
        shutil.copytree(tiny_bundle, target)
    before = tree(tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, step, str(limit)),
            *("model.onnx", "-o", "new.ada", "--activation", "softmax", "--force"),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {target}: cannot be written: File too large; {WRITABLE}\n"
    assert tree(tmp_path) == before


def test_files_beside_the_model(exports, tmp_path: Path) -> None:
    _, preprocess, labels = write_tiny_cnn(tmp_path)
    start = ("tiny.onnx", "-o", "new.ada", "--activation", "softmax")
    labels.write_text("one\ntwo\n")
    text = "labels.txt: holds 2 class names; the model has 5 classes"
    assert exports(*start, "--labels", "labels.txt") == text
    preprocess.write_text('{"mean": 0.5, "std": 0}')
    text = "preprocess.json: scale is 255 and std [0.0, 0.0, 0.0]; expected positive numbers"
    assert exports(*start, "--preprocess", "preprocess.json") == text


# Bundles.


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny.ada"))


def truncate(bundle: Path) -> None:
    data = (bundle / "weights.bin").read_bytes()
    (bundle / "weights.bin").write_bytes(data[:-1000])


def flip(bundle: Path) -> None:
    data = bytearray((bundle / "tapped.onnx").read_bytes())
    data[5000] ^= 4
    (bundle / "tapped.onnx").write_bytes(data)


def link_outside(bundle: Path) -> None:
    shutil.move(bundle / "forward.onnx", bundle.parent / "forward.onnx")
    (bundle / "forward.onnx").symlink_to("../forward.onnx")


def make_newer(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 5, "more": []}))


def make_huge(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(100_000_000)


def list_a_secret(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["../secret"] = manifest["files"]["weights.bin"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


MANIFEST = "expected the manifest of a bundle made by python -m engine.export: copy it again"
BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (shutil.rmtree, ": does not exist; expected a bundle made by python -m engine.export"),
    "truncated": (
        truncate,
        f"/weights.bin: holds 21272 bytes; expected 22272: it is truncated or changed, {COPY}",
    ),
    "flipped": (
        flip,
        "/tapped.onnx: does not have the SHA-256 that manifest.json lists: it was changed, export it again",
    ),
    "a file missing": (
        lambda bundle: (bundle / "head.onnx").unlink(),
        f"/head.onnx: is missing; expected the file that manifest.json lists: {COPY}",
    ),
    "a file too many": (
        lambda bundle: (bundle / "notes.txt").write_text("mine"),
        "/notes.txt: is not listed in manifest.json; expected only the bundle's own files: remove it",
    ),
    "a file linked out of the folder": (
        link_outside,
        f"/forward.onnx: is a link; expected the file that manifest.json lists: {COPY}",
    ),
    "a file listed out of the folder": (
        list_a_secret,
        "/manifest.json: $.files does not fit the schema: '../secret' does not match '^[A-Za-z0-9_][A-Za-z0-9_.-]*$'; "
        "export the model again",
    ),
    "of a newer schema": (
        make_newer,
        "/manifest.json: has schema version 5; this engine reads version 4: export the model again, or install the "
        "engine that wrote it",
    ),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), f"/manifest.json: is missing; {MANIFEST}"),
    "a manifest of 100 MB": (
        make_huge,
        f"/manifest.json: holds 100000000 bytes; expected at most 8388608: it is no manifest, {COPY}",
    ),
}


@pytest.mark.parametrize("case", BUNDLES)
def test_bundle(case: str, bundle: Path, explains) -> None:
    damage, text = BUNDLES[case]
    damage(bundle)
    assert explains("tiny.ada") == f"tiny.ada{text}"


def test_a_damaged_bundle_may_be_replaced(bundle: Path, tmp_path: Path, exports) -> None:
    written(tiny_cnn(), tmp_path)
    truncate(bundle)
    engine.export.export(tmp_path / "model.onnx", bundle, activation="softmax", force=True)
    assert load_bundle(bundle).classes == 5
    make_huge(bundle)
    line = exports("model.onnx", "-o", "tiny.ada", "--activation", "softmax", "--force")
    assert line == f"{bundle}: is not a bundle, so --force does not replace it; choose another name"


def test_random_bits_of_every_file(bundle: Path, random: np.random.Generator) -> None:
    for file in sorted(bundle.iterdir()):
        right = file.read_bytes()
        for position in random.integers(len(right), size=10).tolist():
            data = bytearray(right)
            data[position] ^= 1 << int(random.integers(8))
            for changed in (data, right[:position]):
                file.write_bytes(changed)
                if file.name != "manifest.json":
                    with pytest.raises(BundleError, match=rf"^{bundle}/{file.name}: (holds|does not have) "):
                        load_bundle(bundle)
        file.write_bytes(right)
    assert load_bundle(bundle).classes == 5


def test_manifest_cut_anywhere(bundle: Path, random: np.random.Generator) -> None:
    file = bundle / "manifest.json"
    right = file.read_bytes()
    for length in random.integers(len(right.rstrip()), size=50).tolist():
        file.write_bytes(right[:length])
        with pytest.raises(BundleError, match=r"/manifest\.json: is not JSON \(.*\); export the model again$"):
            load_bundle(bundle)
