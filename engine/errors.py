"""Every error that the engine raises on purpose.

    EngineError
    ├── ModelError               the source model cannot be compiled
    │   ├── UnsupportedOpError   a node has no gradient rule, or a form of it that the rule does not cover
    │   └── VerificationError    the compiled graphs do not compute what the source model computes
    ├── BundleError              a bundle on disk is missing, damaged, foreign or of another schema
    ├── BackendError             a runtime, device or provider is missing or refused a graph
    │   └── MissingRuntimeError  no usable ONNX Runtime is installed; an ImportError too
    ├── ImageError               a photo or array cannot be read or does not fit the model
    ├── TargetError              a class index or label that the model does not have
    ├── OptionError              an option that has no meaning, or that contradicts another
    └── CancelledError           the caller asked an explanation to stop

Every message names its subject, what was received, what was expected and what to do.
"""


class EngineError(Exception):
    """Base of all errors that a user can cause and can mend."""


class ModelError(EngineError):
    """The source model cannot be compiled."""


class UnsupportedOpError(ModelError):
    """A node has no gradient rule, or takes a form that its rule does not cover."""


class VerificationError(ModelError):
    """The compiled graphs do not compute what the source model computes."""


class BundleError(EngineError):
    """A bundle on disk is missing, damaged, foreign or of another schema."""


class BackendError(EngineError):
    """A runtime, device or provider is missing, or refused a graph."""


class MissingRuntimeError(BackendError, ImportError):
    """No usable ONNX Runtime is installed."""


class ImageError(EngineError):
    """A photo or array cannot be read, or does not fit the model."""


class TargetError(EngineError):
    """A class index or label that the model does not have."""


class OptionError(EngineError):
    """An option that has no meaning, or that contradicts another."""


class CancelledError(EngineError):
    """The caller asked an explanation to stop."""
