"""Explain an image that a host has in GPU memory: `python -m examples.pycuda_host NAME.ada PHOTO`.

Stands for a program in C or C++ that owns the GPU: it retains the primary context and has a stream and buffers of its
own. Needs `pip install 'ada-sise-engine[gpu]' pycuda`.
"""

import sys
from pathlib import Path

import numpy as np
import pycuda.driver as drv
from pycuda import gpuarray

import engine
from engine import interop
from engine.image import prepare


def main(bundle: Path, photo: Path) -> None:
    """Work in the GPU's primary context, which all of CUDA's runtime shares; never in that of pycuda.autoinit."""
    drv.init()
    context = drv.Device(0).retain_primary_context()
    context.push()
    try:
        work(bundle, photo)  # whatever lives in the context has gone when it ends
    finally:
        context.pop()


def work(bundle: Path, photo: Path) -> None:
    """Upload a photo, explain it on the host's stream, and bring the heatmap back by the host's own means."""
    stream = drv.Stream()
    with engine.load(bundle, device="cuda", precision="float16") as explainer:
        prepared = prepare(photo, explainer.bundle.preprocess, explainer.bundle.image_shape).array
        image = gpuarray.to_gpu_async(prepared, stream=stream)  # owned by this program
        found = interop.explain(explainer, image, stream=stream.handle)
        heatmap = np.empty(found.heatmap.shape, np.float32)
        drv.memcpy_dtoh_async(heatmap, found.heatmap.data.ptr, stream)  # the stream goes on when the heatmap is there
        stream.synchronize()
    print(found.explanation, f"the brightest pixel is {np.unravel_index(heatmap.argmax(), heatmap.shape)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
