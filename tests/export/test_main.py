import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console

from engine.backends import OnnxRuntimeCpu
from engine.bundle import load_bundle
from engine.cli.console import run
from engine.errors import OptionError
from engine.export import export
from engine.export.__main__ import app, parse_size, print_report
from tests.export.networks import CNN_LAYERS, network, node, small_cnn, weight, written

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(random: np.random.Generator, tmp_path: Path) -> Path:
    return written(small_cnn(random, ending="Softmax"), tmp_path)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command line in this process: arguments → (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["engine.export", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as caught:
            run(app)
        captured = capfd.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return call


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.export", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_export_prints_what_it_made(command, model: Path, tmp_path: Path) -> None:
    labels, preprocess = tmp_path / "labels.txt", tmp_path / "preprocess.json"
    labels.write_text("a\nb\nc\nd\ne\n")
    preprocess.write_text(json.dumps({"mean": 0.5, "std": 0.5}))
    target = tmp_path / "small.ada"
    code, out, err = command(model, "-o", target, "--labels", labels, "--preprocess", preprocess)
    assert (code, err) == (0, "")
    bundle = load_bundle(target)
    assert bundle.labels == tuple("abcde")
    assert bundle.preprocess.mean == (0.5, 0.5, 0.5)

    lines = [" ".join(line.split()) for line in out.splitlines()]
    figures = bundle.manifest["verification"]
    ops = {
        "block1": "1 Conv, 1 Relu",
        "block2": "2 Conv, 2 Relu, 1 Add, 1 MaxPool",
        "block3": "1 AveragePool, 1 Clip, 1 Conv",
    }
    for (block, counts), (name, channels, height, width) in zip(ops.items(), CNN_LAYERS, strict=True):
        figure = f"{figures['gradient_errors'][block]:.1e}"
        assert f"{block} {name} {channels}×{height}×{width} {counts} {figure}" in lines
    head = f"{figures['gradient_errors']['head']:.1e}"
    assert f"head logits 5, softmax 1 Flatten, 1 Gemm, 1 GlobalAveragePool {head}" in lines
    for file in target.iterdir():
        assert f"{file.name} {file.stat().st_size / 1024:,.0f}" in lines
    total = sum(file.stat().st_size for file in target.iterdir())
    assert f"total {total / 1024:,.0f}" in lines
    assert f"forward against the source: {figures['forward_error']:.1e} of the largest logit" in lines
    assert f"chain of blocks against the source: {figures['blocks_error']:.1e} of the largest logit" in lines
    figure = f"{figures['float64_error']:.1e}"
    assert f"chain in float64, in which gradients are verified: {figure} of the largest logit" in lines
    worst = max(figures["average_gradient_errors"].values())
    assert f"average gradients, tapped against the companions: {worst:.1e}" in lines
    assert re.fullmatch(r"exported and verified in \d+\.\d s", lines[-1])


def test_figures_are_printed_each_in_its_place(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = export(model, tmp_path / "small.ada")
    figures = {
        "forward_error": 1.2e-7,
        "blocks_error": 3.4e-7,
        "float64_error": 8.7e-7,
        "gradient_errors": {"block1": 5.6e-9, "block2": 7.8e-9, "block3": 9.1e-9, "head": 2.3e-9},
        "average_gradient_errors": {"relu1": 4.5e-6, "relu3": 6.7e-6, "clip4": 8.9e-7},
        "image_gradient_error": 1.1e-6,
        "full_gradient_error": 2.2e-6,
        "completeness_gap": 3.3,
        "explain_error": 4.4e-8,
    }
    manifest = {**report.bundle.manifest, "verification": figures}
    report = dataclasses.replace(report, bundle=dataclasses.replace(report.bundle, manifest=manifest))
    report = dataclasses.replace(report, notes=("a \x1b[31m[bold]note[/bold]\n:cat:",))
    print_report(report, Console(width=120, highlight=False, emoji=False), 12.34)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-10:] == [
        "forward against the source: 1.2e-07 of the largest logit",
        "chain of blocks against the source: 3.4e-07 of the largest logit",
        "chain in float64, in which gradients are verified: 8.7e-07 of the largest logit",
        "average gradients, tapped against the companions: 6.7e-06",
        "image gradients, gradient against the companions: 1.1e-06",
        "image gradients, full_gradient against gradient: 2.2e-06",
        "what image and biases miss of the logit: 3.3e+00 of the largest logit",
        "heatmap of explain.onnx against the engine's: 4.4e-08",
        "exported and verified in 12.3 s",
        r"note: a \x1b[31m[bold]note[/bold]\n:cat:",
    ]
    printed = {line.split()[0]: line.split()[-1] for line in lines if line.split()[:1]}
    assert {block: printed[block] for block in figures["gradient_errors"]} == {
        "block1": "5.6e-09",
        "block2": "7.8e-09",
        "block3": "9.1e-09",
        "head": "2.3e-09",
    }


def test_note_is_printed(command, random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Sin", "c", "maps"),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "y"),
    ]
    constants = {"w": weight(random, 4, 3, 3, 3), "head": weight(random, 4, 5)}
    model = written(network(nodes, constants), tmp_path)
    code, out, err = command(model, "-o", tmp_path / "small.ada", "--activation", "none")
    assert (code, err) == (0, "")
    note = out.splitlines()[-1]
    reason = "block1 has no gradient companion: Sin node 'node_maps'"
    assert note.startswith(
        f"note: the bundle has no gradient.onnx and full_gradient.onnx, which Ada-SISE does not need: {reason}"
    )
    (row,) = (line.split() for line in out.splitlines() if line.split()[:1] == ["block1"])
    assert row == ["block1", "maps", "4×6×6", "1", "Conv,", "1", "Sin", "none"]


def test_layer_option_may_be_repeated(command, model: Path, tmp_path: Path) -> None:
    code, _, _ = command(model, "-o", tmp_path / "small.ada", "--layer", "clip4", "--layer", "relu1")
    assert code == 0
    assert [layer.name for layer in load_bundle(tmp_path / "small.ada").layers] == ["relu1", "clip4"]


def test_output_name_option(command, random: np.random.Generator, tmp_path: Path) -> None:
    proto = small_cnn(random, ending="Softmax")
    proto.graph.output.add().CopyFrom(proto.graph.output[0])
    proto.graph.output[1].name = "features"
    proto.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 10
    model = written(proto, tmp_path)
    code, _, err = command(model, "-o", tmp_path / "small.ada")
    assert code == 2
    assert "has the outputs scores, features; choose the class scores with " in err
    code, _, err = command(model, "-o", tmp_path / "small.ada", "--output-name", "scores")
    assert (code, err) == (0, "")
    assert load_bundle(tmp_path / "small.ada").manifest["source"]["output"] == "scores"


def test_force_option(command, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.ada"
    assert command(model, "-o", target)[0] == 0
    code, out, err = command(model, "-o", target)
    assert (code, out) == (2, "")
    assert err == f"error: {target}: exists already; choose another name, or replace it with --force\n"
    assert command(model, "-o", target, "--force")[0] == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--activation", "sigmoid"], "activation 'sigmoid' contradicts the model, which ends in Softmax node"),
        (
            ["--layer", "pool1"],
            "no feature layer is possible at 'pool1'; possible are, shallow to deep: bn1 (6×16×12)",
        ),
        (["--output-name", "nothing"], "has no output 'nothing'; its outputs are scores"),
        (["--labels", "no-such-file.txt"], "no-such-file.txt: cannot be read as text"),
        (["--preprocess", "no-such-file.json"], "no-such-file.json: cannot be read as JSON"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_user_error_is_one_line_and_exit_code_2(options: list[str], text: str, command, model: Path) -> None:
    code, out, err = command(model, "-o", model.parent / "small.ada", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert text in err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert [entry.name for entry in model.parent.iterdir()] == [model.name]


def test_markup_in_a_message_is_printed_as_it_is(command, tmp_path: Path) -> None:
    missing = tmp_path / "[bold]model[/bold].onnx"
    code, _, err = command(missing, "-o", tmp_path / "small.ada")
    assert (code, err) == (2, f"error: {missing}: cannot be read: No such file or directory; expected an ONNX file\n")


def test_markup_in_a_path_is_printed_as_it_is(command, model: Path, tmp_path: Path) -> None:
    code, out, _ = command(model, "-o", tmp_path / "[red]small.ada")
    assert code == 0
    assert "[red]small.ada" in "".join(out.split())


def test_refusal_of_the_runtime_is_one_line(command, random: np.random.Generator, tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "maps", auto_pad="SAME_UPPER", dilations=[2, 2]),
        node("GlobalAveragePool", "maps", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat head", "y"),
    ]
    constants = {"w": weight(random, 4, 3, 3, 3), "head": weight(random, 4, 5)}
    model = written(network(nodes, constants), tmp_path)
    code, _, err = command(model, "-o", tmp_path / "small.ada", "--activation", "none")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["model.onnx", "-o", "a.ada", "--colour", "red"]])
def test_wrong_use_exits_with_code_2(arguments: list[str], command) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: " in err


def test_help_names_every_option(command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for option in (
        "MODEL",
        "--output",
        "--preprocess",
        "--labels",
        "--activation",
        "--layer",
        "--output-name",
        "--size",
        "--weights",
        "--photo",
        "--force",
    ):
        assert option in out
    assert "Compile a CNN classifier into a bundle" in out


def test_bug_keeps_its_stack() -> None:
    def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(bug)


def test_module_is_a_command(model: Path, tmp_path: Path) -> None:
    done = python(model, "-o", tmp_path / "small.ada")
    assert (done.returncode, done.stderr) == (0, "")
    assert "exported and verified in" in done.stdout
    assert load_bundle(tmp_path / "small.ada").classes == 5


def test_module_ends_with_code_2_and_one_line(random: np.random.Generator, tmp_path: Path) -> None:
    model = written(small_cnn(random), tmp_path)
    done = python(model, "-o", tmp_path / "small.ada")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {model}: output 'logits' comes from no Softmax, LogSoftmax or Sigmoid, so what turns it into class "
        "scores is unknown; choose with --activation: softmax, sigmoid, none\n"
    )


def test_sizes_that_do_not_fit_are_one_line(random: np.random.Generator, tmp_path: Path) -> None:
    proto = small_cnn(random, ending="Softmax")
    (kernel,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    kernel.CopyFrom(onnx.numpy_helper.from_array(weight(random, 8, 7, 3, 3), "w2"))
    done = python(written(proto, tmp_path), "-o", tmp_path / "small.ada")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_size_is_chosen(command, random: np.random.Generator, tmp_path: Path) -> None:
    proto = small_cnn(random, ending="Softmax")
    for axis, name in ((2, "h"), (3, "w")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    model = written(proto, tmp_path)
    code, out, err = command(model, "-o", tmp_path / "small.ada", "--size", "16x12")
    assert (code, err) == (0, "")
    assert "block1" in out
    assert load_bundle(tmp_path / "small.ada").image_shape == (3, 16, 12)


@pytest.mark.parametrize(
    "size", ["224", "0x224", "224x-1", "3x4x5x6", "ax3", "", "²x3", "1_0x3", "3x4 ", f"224x{10**9}"]
)
def test_size_that_is_none(size: str, command, model: Path, tmp_path: Path) -> None:
    code, out, err = command(model, "-o", tmp_path / "small.ada", "--size", size)
    assert (code, out) == (2, "")
    assert err == (f"error: size {size!r} is none; expected HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, such as 224x224\n")


def test_size_of_more_digits_than_python_reads() -> None:
    text = f"224x{'9' * 5000}"
    shown = f"{f'size {text!r}'[:1000]} … "
    with pytest.raises(OptionError, match=f"^{re.escape(shown)}9+' is none; expected HEIGHTxWIDTH or CHANNELSxHEIGHT"):
        parse_size(text)


@pytest.mark.parametrize(("text", "size"), [("224x320", (224, 320)), ("1x28x028", (1, 28, 28))])
def test_sizes(text: str, size: tuple[int, ...]) -> None:
    assert parse_size(text) == size


MODULE = """
import torch


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 3), torch.nn.Softmax(1),
    )
"""


def test_torch_module_with_weights(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_test_main.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(MODULE, names)
    network = names["make"]()
    with torch.no_grad():
        network[4].bias += 3 * torch.arange(3)
    torch.save(network.state_dict(), "weights.pt")
    arguments = ("module_of_test_main:make", "-o", "small.ada", "--weights", "weights.pt")
    code, _, err = command(*arguments)
    assert code == 2
    assert err == ("error: module_of_test_main:make: has no known image size; choose it with --size HEIGHTxWIDTH\n")
    code, _, err = command(*arguments, "--size", "1x12x10")
    assert (code, err) == (0, "")
    bundle = load_bundle(Path("small.ada"))
    assert (bundle.image_shape, bundle.classes, bundle.activation) == ((1, 12, 10), 3, "softmax")
    x = np.random.default_rng(1).standard_normal((2, 1, 12, 10)).astype(np.float32)
    (logits,) = OnnxRuntimeCpu().open(bundle.forward).run([x])
    with torch.no_grad():
        np.testing.assert_allclose(logits, network[:5](torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_weights_are_for_torch_modules(command, model: Path, tmp_path: Path) -> None:
    code, out, err = command(model, "-o", tmp_path / "small.ada", "--weights", "weights.pt")
    assert (code, out) == (2, "")
    assert err == f"error: weights.pt: weights can be loaded into a torch module only; {model} is an ONNX file\n"
