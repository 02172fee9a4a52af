"""Graphs in ONNX Runtime that take and give arrays where they lie, without a copy."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import onnx
import onnxruntime as ort

from engine.backends.base import Placed, Tensor
from engine.backends.onnxruntime_cpu import describe
from engine.errors import BackendError, DeviceMemoryError
from engine.kernels.device import Device

_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "int64": onnx.TensorProto.INT64,
}
_NO_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "available memory of")


class BoundSession:
    """One graph loaded by ONNX Runtime on a device.

    Args:
        name: What messages call the graph.
        session: The session, which this object owns.
        memory: Where the arrays lie.
        kind: What ONNX Runtime calls the device: `cuda`, or `cpu`.
        worker: A thread that does all runs, which captures them as CUDA graphs: ONNX Runtime has each captured graph
            for the thread alone that has captured it. None for runs in the caller's thread, without graphs.
    """

    def __init__(
        self,
        name: str,
        session: "ort.InferenceSession",
        memory: Device,
        kind: str,
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        self._name = name
        self._session = session
        self._memory = memory
        self._place = kind, 0
        self._worker = worker
        self._captures = 0
        self._input_names = [value.name for value in session.get_inputs()]
        self._output_names = [value.name for value in session.get_outputs()]
        self.inputs: tuple[Tensor, ...] = tuple(map(describe, session.get_inputs()))
        self.outputs: tuple[Tensor, ...] = tuple(map(describe, session.get_outputs()))

    def bind(self, inputs: Sequence[Placed], outputs: Sequence[Placed]) -> Callable[[], None]:
        """Say where the graph's inputs and outputs lie; see `engine.backends.base.Bound`."""
        binding = self._session.io_binding()
        for bind, names, tensors, arrays in (
            (binding.bind_input, self._input_names, self.inputs, inputs),
            (binding.bind_output, self._output_names, self.outputs, outputs),
        ):
            for name, tensor, (array, shape) in zip(names, tensors, arrays, strict=True):
                bind(name, *self._place, _TYPES[tensor.dtype], shape, self._memory.address(array))
        options = ort.RunOptions()
        # It would wait for the device after each run; what comes next is on the same stream.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._worker is not None:
            self._captures += 1  # each place of the arrays has a captured graph of its own
            options.add_run_config_entry("gpu_graph_id", str(self._captures))

        def run(_kept: object = (*inputs, *outputs)) -> None:
            try:
                if self._worker is None:
                    self._session.run_with_iobinding(binding, options)
                else:
                    under_way = self._worker.submit(self._session.run_with_iobinding, binding, options)
                    try:
                        under_way.result()
                    finally:
                        wait([under_way])  # an interrupt shall not let the next work begin within a capture
            except Exception as err:  # ONNX Runtime's own exceptions share no base class below Exception
                raise failure(self._name, "failed", err) from err

        return run


def failure(name: str, what: str, err: Exception) -> BackendError:
    """Return the error for what ONNX Runtime has said.

    Args:
        name: What messages call the graph.
        what: What happened, in words.
        err: ONNX Runtime's error.
    """
    reason = " ".join(str(err).split())
    kind = DeviceMemoryError if any(words in reason.lower() for words in _NO_MEMORY) else BackendError
    return kind(f"{name}: ONNX Runtime {what}: {reason}")
