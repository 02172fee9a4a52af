"""Every error that the engine raises on purpose.

    EngineError
    ├── ModelError               the source model cannot be compiled
    │   ├── UnsupportedOpError   a node has no gradient rule, or a form of it that the rule does not cover
    │   └── VerificationError    the compiled graphs do not compute what the source model computes
    ├── BundleError              a bundle on disk is missing, damaged, foreign or of another schema
    ├── BackendError             a runtime, device or provider is missing or refused a graph
    │   ├── DeviceMemoryError    there is no more memory on the device
    │   └── MissingRuntimeError  the runtime is not installed, or not usable; an ImportError too
    ├── ImageError               a photo or array cannot be read or does not fit the model
    ├── TargetError              a class index or label that the model does not have
    ├── DatasetError             a data set is of no known form, damaged, or does not fit the bundle or the results
    ├── OptionError              an option that has no meaning, or that contradicts another
    ├── DeadlineError            an explanation cannot be there in the time that the caller gave
    └── CancelledError           the caller asked an explanation to stop

Every message names its subject, what was received, what was expected and what to do, on one line. What it quotes from a
file may be hostile: whatever would break the line, or steer the terminal that prints it, is escaped, and an endless
name is cut out of the middle.
"""

_LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    """Return a text on one line, with escapes in the place of all that would steer the terminal that prints it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class EngineError(Exception):
    """Base of all errors that a user can cause and can mend.

    Args:
        message: What went wrong.
    """

    def __init__(self, message: str) -> None:
        line = printable(message)
        if len(line) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            line = f"{line[:half]} … {line[-half:]}"
        super().__init__(line)


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


class DeviceMemoryError(BackendError):
    """There is no more memory on the device."""


class MissingRuntimeError(BackendError, ImportError):
    """The runtime of a device is not installed, or not usable."""


class ImageError(EngineError):
    """A photo or array cannot be read, or does not fit the model."""


class TargetError(EngineError):
    """A class index or label that the model does not have."""


class DatasetError(EngineError):
    """A data set is of no known form, damaged, or does not fit the bundle or the results."""


class OptionError(EngineError):
    """An option that has no meaning, or that contradicts another."""


class DeadlineError(EngineError):
    """An explanation cannot be there in the time that the caller gave."""


class CancelledError(EngineError):
    """The caller asked an explanation to stop."""
