"""Explains an image with openvino-xai, in a virtual environment of its own, and leaves the maps as .npy files.

openvino-xai needs NumPy 1 and an OpenVINO of 2024, so it cannot live beside the engine: `make openvino` makes its
environment and runs `tests/packages/test_openvino_xai.py`, which runs this file there. It needs nothing else of the
repository.
"""

import argparse
from pathlib import Path

import numpy as np
import openvino
from openvino_xai.methods import RISE, ReciproCAM


def main() -> None:
    """Read `model.onnx` and `image.npy` of the folder; write `recipro_cam.npy`, `rise.npy` and `rise_masks.npy`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", type=int, required=True, help="class index")
    parser.add_argument("--layer", required=True, help="tensor whose cells Recipro-CAM keeps, by its node's name")
    parser.add_argument("--masks", type=int, required=True, help="masks of RISE")
    parser.add_argument("--cells", type=int, required=True, help="cells along each side of a mask")
    arguments = parser.parse_args()
    image = np.load(arguments.folder / "image.npy")
    model = openvino.Core().read_model(arguments.folder / "model.onnx")

    recipro_cam = ReciproCAM(model, target_layer=arguments.layer, embed_scaling=False, prepare_model=False)
    compile_in_float32(recipro_cam)
    np.save(arguments.folder / "recipro_cam.npy", recipro_cam.generate_saliency_map(image)[0, arguments.target])

    rise = RISE(model, postprocess_fn=lambda outputs: outputs["logits"], prepare_model=False)
    compile_in_float32(rise)
    options = {"num_masks": arguments.masks, "num_cells": arguments.cells, "prob": 0.5, "seed": 0}
    made = rise.generate_saliency_map(image, [arguments.target], scale_output=False, **options)
    np.save(arguments.folder / "rise.npy", made[arguments.target])
    generator = np.random.default_rng(0)
    masks = [RISE._generate_mask(image.shape[2:], arguments.cells, 0.5, generator) for _ in range(arguments.masks)]
    np.save(arguments.folder / "rise_masks.npy", np.stack(masks))


def compile_in_float32(method: ReciproCAM | RISE) -> None:
    """Compile a method's network; left to itself OpenVINO takes bfloat16 where the processor has it."""
    model = method.prepare_model(load_model=False)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    method._model_compiled = openvino.Core().compile_model(model, "CPU", settings)


if __name__ == "__main__":
    main()
