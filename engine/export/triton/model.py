"""Drives the engine in Triton's Python backend: the inputs and outputs of explain.onnx, but the logits.

`image` is a photo, uint8 [height, width, 3], or the prepared input; the parameter `device` says where the engine runs.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

import engine


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle that lies beside this file."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        device = parameters.get("device", {}).get("string_value", "cpu")
        self.explainer = engine.load(Path(__file__).with_name("model.ada"), device=device)

    def execute(self, requests: list["triton.InferenceRequest"]) -> list["triton.InferenceResponse"]:
        """Answer requests one by one; an EngineError is the answer to its request."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Release the sessions."""
        self.explainer.close()

    def _answer(self, request: "triton.InferenceRequest") -> "triton.InferenceResponse":
        image, target, most = (
            triton.get_input_tensor_by_name(request, name).as_numpy() for name in ("image", "target", "max_masks")
        )
        asked, budget = int(target[0]), int(most[0])
        try:
            result = self.explainer.explain(
                image, None if asked == -1 else asked, max_masks=None if budget == 0 else budget
            )
        except engine.EngineError as err:
            return triton.InferenceResponse(error=triton.TritonError(str(err)))
        outputs = {
            "heatmap": result.heatmap,
            "target_index": np.array([result.target], np.int64),
            "class_score": np.array([result.class_score], np.float32),
            "selected": np.array([layer.selected for layer in result.layers], np.int64),
            "scored": np.array([layer.scored for layer in result.layers], np.int64),
        }
        return triton.InferenceResponse([triton.Tensor(name, value) for name, value in outputs.items()])
