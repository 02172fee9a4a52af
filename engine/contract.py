"""What a bundle's graphs take and give, as its manifest says: checked when each is opened."""

from collections.abc import Sequence

from engine.backends import Bound, Session, Tensor
from engine.bundle import Bundle, Layer
from engine.errors import BundleError

_FLOAT, _INT = "float32", "int64"
_TARGETS = Tensor(_INT, (None,))


def expect_forward(bundle: Bundle, session: Session | Bound, name: str = "forward", images: str = _FLOAT) -> None:
    """Check `forward.onnx`, or the same in another precision, which may take `images` of another type.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    _expect(bundle, f"{name}.onnx", session, [Tensor(images, _images(bundle).shape)], [_logits(bundle)])


def expect_tapped(bundle: Bundle, session: Session | Bound) -> None:
    """Check `tapped.onnx`.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    _expect_tapped(bundle, "tapped.onnx", session, bundle.layers)


def expect_last_layer(bundle: Bundle, session: Session) -> None:
    """Check `last_layer.onnx`.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    _expect_tapped(bundle, "last_layer.onnx", session, bundle.layers[-1:])


def expect_head(bundle: Bundle, session: Session) -> None:
    """Check the head: last feature layer → logits.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    _expect(bundle, bundle.head.name, session, [_borders(bundle)[-2]], [_logits(bundle)])


def expect_companion(bundle: Bundle, name: str, session: Session) -> None:
    """Check the gradient companion of the block `name`, one of the bundle's.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    place = len(bundle.layers) if name == "head" else int(name.removeprefix("block")) - 1
    block_input, block_output = _borders(bundle)[place : place + 2]
    total = Tensor(_FLOAT, block_input.shape[:2])
    _expect(bundle, f"{name}.grad.onnx", session, [block_input, block_output], [block_input, total])


def expect_gradient(bundle: Bundle, session: Session) -> None:
    """Check `gradient.onnx`.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    images = _images(bundle)
    _expect(bundle, "gradient.onnx", session, [images, _TARGETS], [_logits(bundle), images])


def expect_full_gradient(bundle: Bundle, session: Session) -> None:
    """Check `full_gradient.onnx`.

    Raises:
        BundleError: It has another input or output than the manifest says.
    """
    images = _images(bundle)
    attributions = [Tensor(_FLOAT, (None, *bias.shape)) for bias in bundle.biases]
    _expect(bundle, "full_gradient.onnx", session, [images, _TARGETS], [_logits(bundle), images, *attributions])


def expect_explained(graph: str, found: Sequence[int], expected: Sequence[int]) -> None:
    """Check that a graph has explained the classes that were asked about.

    Raises:
        BundleError: It has not.
    """
    if list(found) != list(expected):
        raise BundleError(
            f"{graph}.onnx: says that it explained the classes {list(found)}; expected {list(expected)}: it is not "
            "what python -m engine.export writes, export the model again"
        )


def _expect_tapped(bundle: Bundle, graph: str, session: Session | Bound, layers: Sequence[Layer]) -> None:
    image, logits = Tensor(_FLOAT, (1, *bundle.image_shape)), Tensor(_FLOAT, (1, bundle.classes))
    maps = [Tensor(_FLOAT, (1, layer.channels, layer.height, layer.width)) for layer in layers]
    averages = [Tensor(_FLOAT, (None, layer.channels)) for layer in layers]
    _expect(bundle, graph, session, [image, _TARGETS], [logits, _TARGETS, *maps, *averages])


def _images(bundle: Bundle) -> Tensor:
    return Tensor(_FLOAT, (None, *bundle.image_shape))


def _logits(bundle: Bundle) -> Tensor:
    return Tensor(_FLOAT, (None, bundle.classes))


def _borders(bundle: Bundle) -> list[Tensor]:
    """Return what lies between the blocks: the image, the feature layers, the logits."""
    layers = [Tensor(_FLOAT, (None, layer.channels, layer.height, layer.width)) for layer in bundle.layers]
    return [_images(bundle), *layers, _logits(bundle)]


def _expect(
    bundle: Bundle, graph: str, session: Session | Bound, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    for what, found, expected in (("inputs", session.inputs, inputs), ("outputs", session.outputs, outputs)):
        if list(found) != list(expected):
            raise BundleError(
                f"{bundle.path}: {graph}: {what} are {_names(found)}; the manifest says {_names(expected)}: they "
                "belong to different exports, export the model again"
            )


def _names(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tensor) for tensor in tensors)
