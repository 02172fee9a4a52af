"""Ada-SISE explanations of CNN classifiers on ONNX Runtime.

`load` opens a bundle that `python -m engine.export` made; `Explainer.explain` answers with an `Explanation`.
"""

import logging
import sys

from engine._version import __version__
from engine.errors import (
    BackendError,
    BundleError,
    CancelledError,
    DatasetError,
    DeadlineError,
    DeviceMemoryError,
    EngineError,
    ImageError,
    MissingRuntimeError,
    ModelError,
    OptionError,
    TargetError,
    UnsupportedOpError,
    VerificationError,
)

try:
    from engine.explainer import Explainer
    from engine.loader import load
except MissingRuntimeError as err:
    command = sys.orig_argv[sys.orig_argv.index("-m") + 1] if sys.argv[0] == "-m" and "-m" in sys.orig_argv else ""
    if command not in ("engine", "engine.export"):
        raise
    # `python -m engine…` imports this package before the command line can catch anything: one line, as for any mistake
    sys.stderr.write(f"error: {err}\n")
    sys.exit(2)
from engine.explanation import Explanation, LayerReport

logging.getLogger("engine").addHandler(logging.NullHandler())  # a program that sets up no logging sees none

__all__ = [
    "BackendError",
    "BundleError",
    "CancelledError",
    "DatasetError",
    "DeadlineError",
    "DeviceMemoryError",
    "EngineError",
    "Explainer",
    "Explanation",
    "ImageError",
    "LayerReport",
    "MissingRuntimeError",
    "ModelError",
    "OptionError",
    "TargetError",
    "UnsupportedOpError",
    "VerificationError",
    "__version__",
    "load",
]
