"""Ada-SISE explanations of CNN classifiers on ONNX Runtime.

`load` opens a bundle that `python -m engine.export` made; `Explainer.explain` answers with an `Explanation`.
"""

from engine._version import __version__
from engine.errors import (
    BackendError,
    BundleError,
    EngineError,
    ImageError,
    MissingRuntimeError,
    ModelError,
    OptionError,
    TargetError,
    UnsupportedOpError,
    VerificationError,
)
from engine.explainer import Explainer, load
from engine.explanation import Explanation, LayerReport

__all__ = [
    "BackendError",
    "BundleError",
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
