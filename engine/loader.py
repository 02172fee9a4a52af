"""Loading a bundle: its runtime is set up as it runs fastest on this machine."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from engine.backends import Backend, create_backend
from engine.bundle import load_bundle
from engine.explainer import Explainer
from engine.network import expect_precision, open_scorer
from engine.resident import BATCH_SIZES, USUAL_BATCH_SIZE, BatchStopwatch
from engine.tuning import EACH, Rate, Setup, Stopwatch
from engine.tuning import tune as tune_setup

_LOG = logging.getLogger(__name__)


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    lanes: int | None = None,
    spinning: bool | None = None,
    batch_size: int | None = None,
    tune: bool = True,
    providers: Sequence[str] | None = None,
    cuda_graph: bool = False,
) -> Explainer:
    """Load a bundle, ready to explain.

    What is None of `threads`, `lanes`, `spinning` and `batch_size` is measured, in about three seconds, when the
    bundle is first loaded on this machine, and remembered in the user's cache folder. It changes no result.

    Args:
        path: The bundle `NAME.ada`.
        device: `cpu` is ONNX Runtime; `openvino` is OpenVINO on the CPU, if it is installed; `cuda` is ONNX Runtime on
            the first NVIDIA GPU that the process sees; `tensorrt` is the same with masks scored in TensorRT, which
            builds an engine for each batch size in minutes, and keeps it in the user's cache folder.
        precision: In what masks are scored: `float32`, or `int8` if the bundle was exported with it. Gradients, the
            selection of masks, the reported class score and all measures are float32 in any case. `openvino` has
            `bfloat16` too, on a CPU that computes in it; `cuda` has `tf32` and `float16`;
            `tensorrt` has these and `bfloat16`, and `float32` only where the environment variable
            `NVIDIA_TF32_OVERRIDE` is 0 when the process starts.
        threads: Threads that work on one explanation; by default one per CPU that this process may use, and no more are
            measured.
        lanes: Runs of the scorer at a time, which share the threads out; by default one per thread.
        spinning: Whether a thread that waits for the others of its run keeps its CPU busy; by default not.
        batch_size: Changed images that are scored at a time, by all lanes together; by default 8.
        tune: Whether to measure; else the defaults stay.
        providers: ONNX Runtime's execution providers, in order of preference; None for the device's own.
        cuda_graph: Of device `cuda`: whether scoring runs are captured as a CUDA graph, here and whenever a batch size
            is new, and replayed. It saves the host's work for each run, which is what a small network waits for. No
            other thread may use CUDA while runs are captured.

    Raises:
        BundleError: The bundle is missing, damaged, foreign or of another schema, or has no graph of the precision.
        BackendError: The runtime refused a graph.
        MissingRuntimeError: The device's runtime is not installed.
        OptionError: The device, the precision or a provider is unknown, a number is not positive, or the device lacks
            an option.
    """
    began = time.perf_counter()
    backend = create_backend(
        device, threads=threads, lanes=lanes, spinning=spinning, providers=providers, cuda_graph=cuda_graph
    )
    gpu = backend.gpu

    def create(setup: Setup) -> Backend:
        if gpu is not None:
            return backend
        return create_backend(
            device, threads=setup.threads, lanes=setup.lanes, spinning=setup.spinning, providers=providers
        )

    def stopwatch() -> Rate:
        if gpu is not None:
            return BatchStopwatch(bundle, gpu, precision)
        return Stopwatch(lambda setup: open_scorer(bundle, create(setup), precision), bundle.image_shape)

    usual = None if gpu is None else USUAL_BATCH_SIZE
    setup = Setup.of(backend.threads, usual if batch_size is None else batch_size)
    bundle = load_bundle(Path(path))
    expect_precision(backend, precision)
    if tune:
        given = {"threads": threads, "lanes": lanes, "spinning": spinning, "batch_size": batch_size}
        fixed = ("threads", "lanes", "spinning") if gpu is not None else ()
        setup = tune_setup(
            stopwatch,
            setup,
            fixed=[name for name, value in given.items() if value is not None or name in fixed],
            can_spin=backend.can_spin,
            sizes=EACH if gpu is None else BATCH_SIZES,
            identity={
                "bundle": bundle.manifest["sha256"],
                "device": device,
                "runtime": backend.runtime,
                "precision": precision,
                "providers": None if providers is None else list(providers),
                **({"cuda_graph": True} if cuda_graph else {}),
            },
        )
    explainer = Explainer(bundle, create(setup), precision, setup.batch_size)
    _LOG.info("loaded %s in %.0f ms (%s)", path, (time.perf_counter() - began) * 1e3, setup)
    return explainer
