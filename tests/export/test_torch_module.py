import contextlib
import importlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import engine
from engine.errors import ModelError, OptionError
from engine.export import export, torch_module
from engine.export.torch_module import write_onnx

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (3, 20, 24)
MODULE = """
import warnings
import torch
from torch import nn

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, stride=2), nn.Hardswish(), nn.Dropout(0.5),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

def classifier():
    torch.manual_seed(20102)
    made = Classifier()
    made.features[1].running_mean.normal_()
    made.features[1].running_var.uniform_(0.5, 2)
    return made

class Versioned(Classifier):
    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version") != 2:
            raise ValueError(f"version {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

class Several(Classifier):
    def forward(self, x):
        maps = self.features(x)
        return {"logits": self.head(maps.mean((2, 3))), "features": (maps, None)}

class Warning_(Classifier):
    def forward(self, x):
        print("chatter")
        warnings.warn("chatter", UserWarning)
        return super().forward(x)

class Branching(Classifier):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)

class WithoutOnnx(Classifier):
    def forward(self, x):
        return super().forward(torch.special.bessel_j0(x))

class Silent(nn.Module):
    def forward(self, x):
        raise ValueError

instance = Classifier()
number = 3

def returns_a_number():
    return number

def needs_an_argument(classes):
    return Classifier()

def fails():
    raise RuntimeError("no such file\\nsecond line")
"""


@pytest.fixture(autouse=True)
def classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module `classifiers`; it is the current directory."""
    (tmp_path / "classifiers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("classifiers", "broken", "needs_more"):
        sys.modules.pop(name, None)


def make(name: str) -> torch.nn.Module:
    with importing_from_here():
        made: torch.nn.Module = getattr(importlib.import_module("classifiers"), name)()
    return made.eval()


@contextlib.contextmanager
def importing_from_here() -> Iterator[None]:
    sys.path.insert(0, str(Path.cwd()))
    yield
    sys.path.pop(0)


def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return session.run(None, {image.name: x})


def assert_equals(path: Path, module: torch.nn.Module, random: np.random.Generator) -> None:
    for batch in (1, 3):
        x = random.standard_normal((batch, *SHAPE)).astype(np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        (found,) = run(path, x)
        assert found.shape == (batch, 5)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_file_computes_what_the_module_computes_in_evaluation(
    tmp_path: Path, random: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    search_path = list(sys.path)
    write_onnx("classifiers:classifier", path, weights=None, image_shape=SHAPE)
    assert capfd.readouterr() == ("", "")
    assert sys.path == search_path
    assert [file.name for file in tmp_path.glob("*.onnx*")] == ["model.onnx"]
    assert_equals(path, make("classifier"), random)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    assert image.name == "image"
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", *SHAPE]


def test_the_bytes_are_the_same_in_another_process_and_directory(tmp_path: Path) -> None:
    path, again = tmp_path / "model.onnx", tmp_path / "elsewhere" / "again.onnx"
    again.parent.mkdir()
    (again.parent / "classifiers.py").write_text("# one line more\n" + MODULE)
    write_onnx("classifiers:classifier", path, weights=None, image_shape=SHAPE)
    call = (
        "from pathlib import Path; from engine.export.torch_module import write_onnx; "
        f"write_onnx('classifiers:classifier', Path('again.onnx'), weights=None, image_shape={SHAPE})"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "5"}
    subprocess.run([sys.executable, "-c", call], cwd=again.parent, env=environment, check=True)
    content = path.read_bytes()
    assert again.read_bytes() == content
    assert str(tmp_path).encode() not in content
    assert b"classifiers.py" not in content


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_replace_the_modules_own(tmp_path: Path, random: np.random.Generator, wrap, prefix: str) -> None:
    trained = make("Classifier")
    weights, path = tmp_path / "weights.pt", tmp_path / "model.onnx"
    torch.save(wrap({f"{prefix}{key}": tensor for key, tensor in trained.state_dict().items()}), weights)
    write_onnx("classifiers:classifier", path, weights=weights, image_shape=SHAPE)
    assert_equals(path, trained, random)


@pytest.mark.parametrize("parallel", [False, True])
def test_weights_keep_the_versions_of_their_modules(
    tmp_path: Path, random: np.random.Generator, parallel: bool
) -> None:
    trained = make("Versioned")
    weights, path = tmp_path / "weights.pt", tmp_path / "model.onnx"
    torch.save((torch.nn.DataParallel(trained) if parallel else trained).state_dict(), weights)
    write_onnx("classifiers:Versioned", path, weights=weights, image_shape=SHAPE)
    assert_equals(path, trained, random)


def test_several_outputs_stay_several(tmp_path: Path, random: np.random.Generator) -> None:
    path = tmp_path / "model.onnx"
    write_onnx("classifiers:Several", path, weights=None, image_shape=SHAPE)
    x = random.standard_normal((3, *SHAPE)).astype(np.float32)
    assert [output.shape for output in run(path, x)] == [(3, 5), (3, 8, 4, 5)]
    names = [value.name for value in onnx.load(path).graph.output]
    message = f"{path}: has the outputs {', '.join(names)}; choose the class scores with --output-name NAME"
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        export(path, tmp_path / "several.ada", activation="softmax")


def test_the_exporters_chatter_and_warnings_stay_inside(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_onnx("classifiers:Warning_", tmp_path / "model.onnx", weights=None, image_shape=SHAPE)
    assert capfd.readouterr() == ("", "")


def test_large_weights_go_into_a_file_of_their_own(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_module, "LARGEST_FILE_BYTES", 1000)
    path = tmp_path / "model.onnx"
    write_onnx("classifiers:classifier", path, weights=None, image_shape=SHAPE)
    assert sorted(file.name for file in tmp_path.glob("*.onnx*")) == ["model.onnx", "model.onnx.data"]
    assert_equals(path, make("classifier"), random)


def test_importing_the_engine_and_exporting_a_file_import_no_torch() -> None:
    call = "import sys, engine, engine.export, engine.export.torch_module; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", call], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def assert_refused(error: type[engine.EngineError], factory: str, message: str, weights: Path | None = None) -> None:
    with pytest.raises(error, match=f"^{message}$") as caught:
        write_onnx(factory, Path("never.onnx"), weights=weights, image_shape=SHAPE)
    assert type(caught.value) is error
    assert not Path("never.onnx").exists()


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_torch_is_not_installed(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert_refused(
        OptionError,
        "classifiers:classifier",
        "factory 'classifiers:classifier': a torch module needs torch and onnxscript \\(import of "
        f"{missing} halted; None in sys.modules\\); install them with pip install 'ada-sise-engine\\[torch\\]'",
    )


FACTORIES = [
    ("classifiers", "expected package\\.module:function, such as torchvision\\.models:resnet50"),
    (":classifier", "expected package\\.module:function, such as torchvision\\.models:resnet50"),
    ("classifiers:", "expected package\\.module:function, such as torchvision\\.models:resnet50"),
    (
        "absent.models:classifier",
        "absent\\.models cannot be imported: ModuleNotFoundError: No module named 'absent'; expected a module in the "
        "current directory or an installed one",
    ),
    (
        "needs_more:classifier",
        "needs_more cannot be imported: ModuleNotFoundError: No module named 'absent'; expected a module in the "
        "current directory or an installed one",
    ),
    (
        "broken:classifier",
        "broken cannot be imported: SyntaxError: invalid syntax \\(broken\\.py, line 1\\); expected a module in the "
        "current directory or an installed one",
    ),
    ("classifiers:resnet", "classifiers has no 'resnet'; expected a function in that module"),
    ("classifiers:number", "is a int; expected a function that returns a torch\\.nn\\.Module"),
    ("classifiers:instance", "is a Classifier; expected a function that returns a torch\\.nn\\.Module"),
]


@pytest.mark.parametrize(("factory", "message"), FACTORIES)
def test_a_factory_that_cannot_be_found(factory: str, message: str) -> None:
    Path("broken.py").write_text("def\n")
    Path("needs_more.py").write_text("import absent\n")
    assert_refused(OptionError, factory, f"factory '{factory}': {message}")


MODULES = [
    ("fails", "raised RuntimeError: no such file; expected it to work without arguments"),
    (
        "needs_an_argument",
        "raised TypeError: needs_an_argument\\(\\) missing 1 required positional argument: 'classes'; expected it to "
        "work without arguments",
    ),
    ("returns_a_number", "returned a int; expected a torch\\.nn\\.Module"),
    (
        "Branching",
        "torch cannot export the Branching to ONNX for images \\[batch, 3, 20, 24\\]: GuardOnDataDependentSymNode: "
        "Could not guard on data-dependent expression .*; expected a module that torch\\.export takes",
    ),
    (
        "WithoutOnnx",
        "torch cannot export the WithoutOnnx to ONNX for images \\[batch, 3, 20, 24\\]: DispatchError: No ONNX "
        "function found for .*bessel_j0.*; expected a module that torch\\.export takes",
    ),
    (
        "Silent",
        "torch cannot export the Silent to ONNX for images \\[batch, 3, 20, 24\\]: ValueError; expected a module that "
        "torch\\.export takes",
    ),
]


@pytest.mark.parametrize(("name", "message"), MODULES)
def test_a_factory_that_makes_no_exportable_module(name: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(ModelError, f"classifiers:{name}", f"factory 'classifiers:{name}': {message}")
    assert capfd.readouterr() == ("", "")


def test_images_that_do_not_fit_the_module(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"for images \[batch, 1, 20, 24\]: RuntimeError: .*to have 3 channels.*$"):
        write_onnx("classifiers:classifier", tmp_path / "model.onnx", weights=None, image_shape=(1, 20, 24))


class Foreign:
    """Something that a plain state dict does not hold."""


def content_of(case: str) -> bytes:
    plain = Path("plain.pt")
    state = make("Classifier").state_dict()
    torch.save(state, plain)
    whole = plain.read_bytes()
    return {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello, world"}[case]


UNREADABLE = [
    ("cut", "RuntimeError: PytorchStreamReader failed reading zip archive: .*"),
    ("empty", "EOFError"),
    ("text", "KeyError: 101"),
]


@pytest.mark.parametrize(("case", "reason"), UNREADABLE)
def test_weights_that_are_damaged(case: str, reason: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(content_of(case))
    assert_refused(
        OptionError,
        "classifiers:classifier",
        f"{re.escape(str(weights))}: cannot be loaded as plain tensors: {reason}; expected a state dict, written by "
        "torch\\.save\\(module\\.state_dict\\(\\), FILE\\)",
        weights,
    )


def test_weights_that_are_a_pickled_module(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(Foreign(), weights)
    assert_refused(
        OptionError,
        "classifiers:classifier",
        f"{re.escape(str(weights))}: cannot be loaded as plain tensors: Unsupported global: GLOBAL "
        f"{re.escape(Foreign.__module__)}\\.Foreign was not an allowed global by default\\..*; expected a state dict, "
        "written by torch\\.save\\(module\\.state_dict\\(\\), FILE\\)",
        weights,
    )


def test_weights_that_are_missing_or_a_folder(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.pt", "No such file or directory"), (tmp_path, "Is a directory")):
        assert_refused(
            OptionError,
            "classifiers:classifier",
            f"{re.escape(str(path))}: cannot be read: {reason}; expected a state dict",
            path,
        )


OTHER_CONTENT = [
    ([1, 2], "holds a list; expected a state dict, tensors by name"),
    ({}, "holds nothing; expected a state dict, tensors by name"),
    ({"epoch": 3}, "entry 'epoch' is a int; expected a state dict of tensors"),
    ({3: torch.zeros(1)}, "entry 3 is a Tensor; expected a state dict of tensors"),
]


@pytest.mark.parametrize(("content", "message"), OTHER_CONTENT)
def test_weights_that_are_no_state_dict(content: object, message: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(content, weights)
    assert_refused(OptionError, "classifiers:classifier", f"{re.escape(str(weights))}: {message}", weights)


MISFITS = [
    (
        {"head.weight": "head.w", "features.0.bias": "features.0.b", "head.bias": "b", "features.1.bias": "x"},
        "does not fit Classifier: lacks 'features\\.0\\.bias', 'features\\.1\\.bias', 'head\\.bias' and 1 more and "
        "has in excess 'b', 'features\\.0\\.b', 'head\\.w' and 1 more; expected the state dict of this architecture",
    ),
    ({"head.bias": None}, "does not fit Classifier: lacks 'head\\.bias'; expected the state dict of this architecture"),
]


@pytest.mark.parametrize(("renamed", "message"), MISFITS)
def test_weights_of_another_architecture(renamed: dict[str, str | None], message: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    state = {renamed.get(key, key): tensor for key, tensor in make("Classifier").state_dict().items()}
    state.pop(None, None)
    torch.save(state, weights)
    assert_refused(OptionError, "classifiers:classifier", f"{re.escape(str(weights))}: {message}", weights)


def test_weights_of_another_size(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(make("Classifier").state_dict() | {"head.bias": torch.zeros(7)}, weights)
    assert_refused(
        OptionError,
        "classifiers:classifier",
        f"{re.escape(str(weights))}: does not fit Classifier: size mismatch for head\\.bias: copying a param with "
        "shape torch\\.Size\\(\\[7\\]\\) from checkpoint, the shape in current model is torch\\.Size\\(\\[5\\]\\)\\.; "
        "expected the state dict of this architecture",
        weights,
    )


def test_the_file_compiles_into_a_bundle(tmp_path: Path) -> None:
    source = textwrap.dedent("""
        from torch import nn

        def plain():
            return nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3),
                nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(1),
            )
    """)
    Path("classifiers.py").write_text(source)
    path = tmp_path / "plain.onnx"
    write_onnx("classifiers:plain", path, weights=None, image_shape=SHAPE)
    report = export(path, tmp_path / "plain.ada")
    assert [(layer.channels, layer.height) for layer in report.bundle.layers] == [(6, 20), (8, 8)]
    assert report.bundle.activation == "softmax"
