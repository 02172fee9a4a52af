"""OpenVINO's CPU plugin; imported when device `openvino` is first asked for."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Brake, Tensor
from engine.backends.half import with_rounded_weights
from engine.backends.threads import Threads, expect_same_process
from engine.errors import BackendError, MissingRuntimeError, OptionError

try:
    import openvino as ov
except ImportError as err:
    raise MissingRuntimeError(
        f"OpenVINO cannot be imported ({err}); install it with pip install 'ada-sise-engine[openvino]'"
    ) from err

OPENVINO_VERSION: str = ov.__version__.partition("-")[0]
_DEVICE = "CPU"
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
"""In what OpenVINO computes operators of float32: int8 is in the graph's own operators, and the rest of it is exact."""

# One, which lives as long as the process. OpenVINO gives the thread that first uses a core a stack for signals, and
# unmaps it with the core, also while the thread has it in use because another core came between: the thread's next
# signal, a SIGINT that Python handles for example, is then a segmentation fault (seen with OpenVINO 2026.4).
_CORE = ov.Core()
_CORE.set_property({"ENABLE_MMAP": False})  # what is written over a mapped file reaches the network loaded from it


class OpenVinoCpu:
    """Opens graphs in OpenVINO on the CPU, the same bytes out for the same bytes in.

    Args:
        threads: As for every `Backend`, and so is the next. OpenVINO starts no more than the machine has CPUs.
        lanes: Runs at a time of a graph that is run often.
        spinning: OpenVINO's threads do not spin; None or False.
        providers: Belong to ONNX Runtime; None.

    Raises:
        OptionError: The number of threads or lanes is not positive, or an option is not of OpenVINO.
    """

    device: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = tuple(_HINTS)
    runtime: ClassVar[str] = f"OpenVINO {OPENVINO_VERSION}"
    can_spin: ClassVar[bool] = False
    gpu: ClassVar[None] = None

    def __init__(
        self,
        *,
        threads: int | None = None,
        lanes: int | None = None,
        spinning: bool | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.threads = Threads.of(threads, lanes, spinning)
        if providers is not None:
            raise OptionError(
                f"providers is {providers!r}; expected None: providers are of ONNX Runtime, on device 'cpu'"
            )
        if self.threads.spinning:
            raise OptionError("spinning is True; expected False or None: OpenVINO's threads do not spin")

    def open(self, graph: Path | bytes, *, many_runs: bool = False, precision: str = "float32") -> "OpenVinoSession":
        """Load a graph from a file or from the bytes of a model.

        The batch stays open: a graph compiled for one batch size is at most a tenth faster, and every other size would
        need another or be filled up (decision 12).

        Args:
            graph: The file, or the bytes.
            many_runs: Whether several runs may be under way, each with its share of the threads.
            precision: `bfloat16` for convolutions and products in it; float32 otherwise, but for int8 operators.

        Raises:
            BackendError: OpenVINO refused the graph, or this CPU does not compute in bfloat16.
        """
        name = str(graph) if isinstance(graph, Path) else "the source model"
        self._expect_capable(name, precision)
        run_threads, lanes = self.threads.shared_out(many_runs)
        properties = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": run_threads * lanes,
            "ENABLE_HYPER_THREADING": True,  # else it would take fewer threads than it is asked to
            "ENABLE_CPU_PINNING": False,  # else explainers side by side would all sit on the first CPUs
        }
        content = graph
        if precision == "bfloat16" and isinstance(graph, Path):
            content = with_rounded_weights(graph, precision)
        try:
            compiled = _CORE.compile_model(_CORE.read_model(content), _DEVICE, properties)
        except Exception as err:  # OpenVINO raises RuntimeError, and its bindings TypeError and others
            reason = " ".join(str(err).split())
            raise BackendError(f"{name}: {self.runtime} refused the graph: {reason}") from err
        return OpenVinoSession(name, compiled)

    def _expect_capable(self, name: str, precision: str) -> None:
        capabilities = _CORE.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in capabilities:
            raise BackendError(
                f"{name}: {_CORE.get_property(_DEVICE, 'FULL_DEVICE_NAME')} computes in "
                f"{', '.join(sorted(capabilities))}; expected BF16 among them (AVX-512 BF16 or AMX): choose precision "
                "'float32' or 'int8'"
            )


class OpenVinoSession:
    """One graph compiled by OpenVINO.

    Every run has a request of its own, which takes 20 µs to make and lets go of the caller's arrays when it ends.

    Args:
        name: What messages call the graph.
        compiled: The graph, which this object owns.
    """

    def __init__(self, name: str, compiled: "ov.CompiledModel") -> None:
        self.runs_at_once = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._name = name
        self._compiled = compiled
        self._process = os.getpid()  # OpenVINO runs even one thread's work in a thread of its own
        self.inputs = tuple(map(_tensor, compiled.inputs))
        self.outputs = tuple(map(_tensor, compiled.outputs))

    def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> list[NDArray[np.generic]]:
        """Run the graph once; see `engine.backends.base.Session`."""
        expect_same_process(self._name, self._process, "load the bundle in each process")
        request = self._compiled.create_infer_request()
        whole = [np.require(array, requirements=["C", "W"]) for array in inputs]  # OpenVINO takes these without a copy
        try:
            for number, (_, array) in enumerate(zip(self.inputs, whole, strict=True)):
                request.set_input_tensor(number, ov.Tensor(array, shared_memory=True))
            request.start_async()
            with nullcontext() if brake is None else brake.on(request.cancel):
                request.wait()
        except Exception as err:  # OpenVINO raises RuntimeError, and its bindings TypeError and others
            reason = " ".join(str(err).split())
            raise BackendError(f"{self._name}: OpenVINO failed: {reason}") from err
        # Copies: the tensors are the request's, and what becomes of them after it OpenVINO does not say.
        return [request.get_output_tensor(number).data.copy() for number in range(len(self.outputs))]


def _tensor(port: "ov.ConstOutput") -> Tensor:
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return Tensor(np.dtype(port.get_element_type().to_dtype()).name, sizes)
