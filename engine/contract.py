"""What a bundle's two graphs take and give, as its manifest says: checked when they are opened."""

from collections.abc import Sequence

from engine.backends import Session, Tensor
from engine.bundle import Bundle
from engine.errors import BundleError

_FLOAT, _INT = "float32", "int64"


def expect_contract(bundle: Bundle, tapped: Session, forward: Session) -> None:
    """Check that both graphs are those that the manifest describes.

    Raises:
        BundleError: A graph has another input or output than the manifest says.
    """
    image = bundle.image_shape
    layers = [Tensor(_FLOAT, (1, layer.channels, layer.height, layer.width)) for layer in bundle.layers]
    averages = [Tensor(_FLOAT, (None, layer.channels)) for layer in bundle.layers]
    targets = Tensor(_INT, (None,))
    _expect(bundle, "forward.onnx: inputs", forward.inputs, [Tensor(_FLOAT, (None, *image))])
    _expect(bundle, "forward.onnx: outputs", forward.outputs, [Tensor(_FLOAT, (None, bundle.classes))])
    _expect(bundle, "tapped.onnx: inputs", tapped.inputs, [Tensor(_FLOAT, (1, *image)), targets])
    logits = Tensor(_FLOAT, (1, bundle.classes))
    _expect(bundle, "tapped.onnx: outputs", tapped.outputs, [logits, targets, *layers, *averages])


def _expect(bundle: Bundle, subject: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    if list(found) != list(expected):
        raise BundleError(
            f"{bundle.path}: {subject} are {_names(found)}; the manifest says {_names(expected)}: they belong to "
            "different exports, export the model again"
        )


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tensor) for tensor in tensors)
