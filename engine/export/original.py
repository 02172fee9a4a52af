"""The source model as its file has it: what everything that is compiled is compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from engine.backends import OnnxRuntimeCpu
from engine.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """How to run the source file as it is, though it may take its images in another form.

    Attributes:
        path: The ONNX file.
        logits: Name of the tensor with the logits.
        batch: The batch that the file is fixed at, or None.
        channels_last: Whether it takes images [N, H, W, C].
        half: Whether it computes in float16, somewhere at least.
        half_input: Whether it takes float16 images.
        one_logit: Whether its one logit stands for two classes.
        quantized: Whether it quantizes activations.
    """

    path: Path
    logits: str
    batch: int | None
    channels_last: bool
    half: bool
    half_input: bool
    one_logit: bool
    quantized: bool

    def open(self, runtime: OnnxRuntimeCpu) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Open the file and return it as a function: images float32 [N, C, H, W] → logits float32 [N, classes].

        A fixed batch is run as often as it takes; its last run is filled up with the last image.

        Raises:
            BackendError: ONNX Runtime refuses the file.
            ModelError: The file has gone or changed since it was read.
        """
        try:
            proto = onnx.load_model(self.path)
        except (DecodeError, onnx.checker.ValidationError, OSError) as err:
            raise ModelError(
                f"{self.path}: has changed while it was compiled: {' '.join(str(err).split())}; export it again"
            ) from err
        del proto.graph.output[:]
        proto.graph.output.append(onnx.ValueInfoProto(name=self.logits))
        session = runtime.open(proto.SerializeToString())
        del proto

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            given: NDArray[np.generic] = np.moveaxis(images, 1, -1) if self.channels_last else images
            given = np.ascontiguousarray(given, np.float16 if self.half_input else np.float32)
            step = self.batch or len(given)
            rows: list[NDArray[np.float32]] = []
            for start in range(0, len(given), step):
                part = given[start : start + step]
                padded = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
                (logits,) = session.run([padded])
                rows.extend(logits.reshape(step, -1)[: len(part)].astype(np.float32))
            found = np.stack(rows)
            return np.concatenate([-found, found], axis=1) if self.one_logit else found

        return run
