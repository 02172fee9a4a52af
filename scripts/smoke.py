"""Exports a small CNN and explains an image with it: the installed package end to end, in a few seconds.

It needs the engine and an ONNX Runtime, and nothing of the repository.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import engine


def main() -> None:
    """Export, explain from Python and from the command line, and look at the results."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        onnx.save(small_cnn(), work / "small.onnx")
        (work / "preprocess.json").write_text('{"mean": 0.5, "std": 0.25}')
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(work / "photo.png")
        bundle = work / "small.ada"
        command_line("engine.export", work / "small.onnx", "-o", bundle, "--preprocess", work / "preprocess.json")
        command_line("engine", "explain", bundle, work / "photo.png", "-o", work / "heatmap.png", "--target", "1")
        result = engine.load(bundle).explain(work / "photo.png", 1)
        if not (result.target == 1 and result.scored > 0 and result.heatmap.max() == 1.0):
            sys.exit(f"unexpected result: {result}")
        if Image.open(work / "heatmap.png").tobytes() != result.figure().tobytes():
            sys.exit("the command line drew another figure than Python")
    print(f"engine {engine.__version__}: {result}")


def small_cnn() -> onnx.ModelProto:
    """Build Conv → Relu → MaxPool → Conv → Relu → GlobalAveragePool → Flatten → Gemm → Softmax, with seeded weights."""
    random = np.random.default_rng(1)
    weights = {
        "w1": random.normal(0, 0.3, (8, 3, 3, 3)),
        "w2": random.normal(0, 0.2, (16, 8, 3, 3)),
        "w3": random.normal(0, 0.5, (16, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def command_line(module: str, *arguments: object) -> None:
    """Run `python -m MODULE …` and stop when it fails."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
