"""Explains images with openvino-xai when it is asked to, in a virtual environment of its own.

`benchmarks/rivals.py` starts it and talks to it: openvino-xai cannot live beside the engine, see
`scripts/openvino_maps.py`. Each line that it reads is a JSON list of a method, the file of a network's input, a class,
and the file for the map; each that it writes is a JSON object with the milliseconds and the images computed by graph.
OpenVINO computes in the precision that it takes when it is left to itself.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino_xai.methods import AISEClassification, ReciproCAM

Explain = Callable[[Any, int], tuple[Any, Mapping[str, int]]]


def main() -> None:
    """Answer until there are no more lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="ONNX file")
    parser.add_argument("--layer", required=True, help="tensor whose cells Recipro-CAM keeps, by its node's name")
    parser.add_argument("--output", required=True, help="name of the logits")
    arguments = parser.parse_args()
    model = openvino.Core().read_model(arguments.model)
    ways = {"recipro-cam": recipro_cam(model, arguments.layer), "aise": aise(model, arguments.output)}
    print(json.dumps(openvino.__version__), flush=True)
    for line in sys.stdin:
        method, image, target, answer = json.loads(line)
        x = np.load(image)
        began = time.perf_counter()
        found, evaluations = ways[method](x, target)
        milliseconds = (time.perf_counter() - began) * 1e3
        np.save(answer, found)
        print(json.dumps({"milliseconds": milliseconds, "evaluations": evaluations}), flush=True)


def recipro_cam(model: Any, layer: str) -> Explain:
    """Recipro-CAM at a layer; its network, with a batch of one image for each cell behind the layer, is one graph."""
    method = ReciproCAM(model, target_layer=layer, embed_scaling=False)

    def explain(x: Any, target: int) -> tuple[Any, Mapping[str, int]]:
        found = method.generate_saliency_map(x)[0, target]
        return found, {"forward": 1, "head": found.size}

    return explain


def aise(model: Any, output: str) -> Explain:
    """AISE with its default preset."""
    method = AISEClassification(model, postprocess_fn=lambda outputs: outputs[output])

    def explain(x: Any, target: int) -> tuple[Any, Mapping[str, int]]:
        found = method.generate_saliency_map(x, [target], scale_output=False)[target]
        points = sum(map(len, method.kernel_params_hist.values()))
        return found, {"forward": 1 + 2 * points}  # each point is kept once and cut out once

    return explain


if __name__ == "__main__":
    main()
