"""Other packages on the bundle's network: Score-CAM of pytorch-grad-cam, AISE and Recipro-CAM of openvino-xai."""

import importlib.metadata
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tests.architectures  # noqa: F401  makes torchvision importable, which grad-cam imports
from benchmarks.ways import Find, Found, Map
from engine.bundle import Bundle
from engine.kernels import scale_to_unit, upsample
from tests.reference.network import TorchNetwork

ROOT = Path(__file__).resolve().parents[1]
OPENVINO_PYTHON = ROOT / ".venv-openvino" / "bin" / "python"


class UnavailableError(Exception):
    """A package is not installed."""


class BundleModule(nn.Module):
    """A bundle's network as a torch module, executed node by node in float32.

    Args:
        bundle: The compiled model.

    Attributes:
        last: Passes the maps of the last feature layer on, so that packages can hook it.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        blocks = [bundle.path / f"block{number + 1}.onnx" for number in range(len(bundle.layers))]
        self._blocks = [TorchNetwork(block) for block in blocks]
        self._head = TorchNetwork(bundle.head)
        self._device = nn.Parameter(torch.zeros(1), requires_grad=False)  # packages ask the parameters where they are
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, C, H, W]."""
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self._blocks:
            x = _output(block, x)
        return _output(self._head, self.last(x))


def _output(network: TorchNetwork, x: Tensor) -> Tensor:
    (name,) = network.outputs
    return network.run(x, [name], dtype=torch.float32)[name]


def grad_cam_score_cam(bundle: Bundle) -> Find:
    """Return Score-CAM of pytorch-grad-cam with its default options, in torch.

    Raises:
        UnavailableError: It is not installed.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # it draws a bar an explanation
    try:
        from pytorch_grad_cam import ScoreCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as err:
        raise UnavailableError(f"{err}: pip install --no-deps grad-cam==1.5.7 ttach==0.0.3") from err
    module = BundleModule(bundle)
    method = ScoreCAM(model=module, target_layers=[module.last])
    channels = bundle.layers[-1].channels

    def find(image: Map, target: int) -> Found:
        began = time.perf_counter()
        with torch.inference_mode():
            found = method(input_tensor=torch.from_numpy(image.copy()), targets=[ClassifierOutputTarget(target)])[0]
        took = (time.perf_counter() - began) * 1e3
        return Found(heatmap=_unit(found), milliseconds=took, evaluations={"forward": 1 + channels})

    return find


def versions() -> dict[str, str]:
    """Return the versions of the packages that are installed beside the engine."""
    found = {}
    for package in ("grad-cam", "openvino", "matplotlib"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class OpenvinoXai:
    """A process with openvino-xai that explains one network.

    Args:
        python: The interpreter of its environment.
        source: The ONNX file.
        layer: The tensor of the last feature layer.

    Raises:
        UnavailableError: There is no such interpreter, or openvino-xai does not start there.

    Attributes:
        version: OpenVINO's.
    """

    def __init__(self, python: Path, source: Path, layer: str) -> None:
        if not python.exists():
            raise UnavailableError(f"{python} is not there: make openvino")
        self._folder = tempfile.TemporaryDirectory()
        graph = onnx.load(source, load_external_data=False).graph
        node = next(node.name for node in graph.node if layer in node.output)
        command: Sequence[str] = [
            *(str(python), str(ROOT / "scripts" / "openvino_ways.py"), str(source)),
            *("--layer", node, "--output", graph.output[0].name),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.version = str(self._read())
        except UnavailableError:
            self.close()
            raise

    def find(self, method: str) -> Find:
        """Return what explains by `aise` or `recipro-cam`."""

        def find(image: Map, target: int) -> Found:
            photo, answer = (Path(self._folder.name) / name for name in ("image.npy", "map.npy"))
            np.save(photo, image)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([method, str(photo), target, str(answer)]) + "\n")
            self._process.stdin.flush()
            told = self._read()
            found = upsample(np.load(answer).astype(np.float64), (image.shape[2], image.shape[3]))
            return Found(heatmap=_unit(found), **told)

        return find

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self):  # type: ignore[no-untyped-def]  # JSON
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UnavailableError("openvino-xai ended; its error is above")
        return json.loads(line)


def _unit(found: NDArray[np.floating]) -> Map:
    """Scale a map to 0 … 1; zeros when it is constant, as the engine's heatmaps are."""
    scaled = scale_to_unit(np.asarray(found, np.float64))
    return np.zeros(found.shape, np.float32) if scaled is None else scaled.astype(np.float32)
