"""Making an ONNX file of a torch module, for users who hold no ONNX file.

torch is imported inside the functions: neither `import engine` nor the export of an ONNX file needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from engine.errors import ModelError, OptionError

if TYPE_CHECKING:
    import torch

LARGEST_FILE_BYTES = 1_900_000_000
"""Weights beyond this go into a file of their own: protobuf ends at 2 GiB, and the nodes need some of it."""
_WRAPPERS = ("state_dict", "model")
_PARALLEL = "module."
_NAMED_KEYS = 3
_EXPORTERS_WARNINGS = (DeprecationWarning, FutureWarning, UserWarning)


def write_onnx(factory: str, path: Path, *, weights: Path | None, image_shape: tuple[int, int, int]) -> None:
    """Write the torch module that a factory makes as an ONNX file with a dynamic batch.

    The same module gives the same bytes: no stack trace, path or time stays in the file. An output that is a tuple or a
    dict becomes several outputs.

    Args:
        factory: `package.module:function`; called without arguments, it returns a torch.nn.Module. The current
            directory is importable.
        path: The ONNX file; weights of 1.9 GB and more go into `NAME.data` beside it.
        weights: State dict, as `torch.save` writes it, to load into the module; None keeps the module's own weights. It
            may lie under the key `state_dict` or `model`, and its keys may begin with DataParallel's `module.`.
        image_shape: Sizes C, H and W of the module's input.

    Raises:
        OptionError: torch is not installed, the factory cannot be found, or the weights cannot be read or do not fit.
        ModelError: The factory fails or returns something else, or torch cannot export the module.
    """
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it, and says so late
        import torch  # noqa: F401
    except ImportError as err:
        raise OptionError(
            f"factory {factory!r}: a torch module needs torch and onnxscript ({err}); install them with "
            "pip install 'ada-sise-engine[torch]'"
        ) from err
    with _current_directory_importable():
        module = _make(factory).cpu()
        if weights is not None:
            _load_weights(module, weights)
        model = _export(factory, module.eval(), image_shape)
    _strip(model)
    size_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if size_bytes > LARGEST_FILE_BYTES else None)


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    directory = str(Path.cwd())
    if directory in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def _make(factory: str) -> torch.nn.Module:
    """Import and call the factory."""
    import torch

    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise OptionError(f"factory {factory!r}: expected package.module:function, such as torchvision.models:resnet50")
    try:
        module = importlib.import_module(module_name)
    except Exception as err:
        raise OptionError(
            f"factory {factory!r}: {module_name} cannot be imported: {_reason(err)}; expected a module in the current "
            "directory or an installed one"
        ) from err
    if not hasattr(module, name):
        raise OptionError(f"factory {factory!r}: {module_name} has no {name!r}; expected a function in that module")
    function = getattr(module, name)
    if not callable(function) or isinstance(function, torch.nn.Module):
        raise OptionError(
            f"factory {factory!r}: is a {type(function).__name__}; expected a function that returns a torch.nn.Module"
        )
    try:
        made = function()
    except Exception as err:
        raise ModelError(f"factory {factory!r}: raised {_reason(err)}; expected it to work without arguments") from err
    if not isinstance(made, torch.nn.Module):
        raise ModelError(f"factory {factory!r}: returned a {type(made).__name__}; expected a torch.nn.Module")
    return made


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load a state dict, without unpickling anything but tensors; every key must fit."""
    from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

    state = _read_state_dict(path)
    own = module.state_dict().keys()
    if all(key.startswith(_PARALLEL) for key in state) and not any(key.startswith(_PARALLEL) for key in own):
        consume_prefix_in_state_dict_if_present(state, _PARALLEL)
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as err:  # shapes that differ: one line each, below a headline
        _, *mismatches = [line.strip() for line in str(err).splitlines()]
        raise OptionError(
            f"{path}: does not fit {type(module).__name__}: {mismatches[0] if mismatches else err}; expected the state "
            "dict of this architecture"
        ) from err
    faults = [f"{what} {_listed(keys)}" for what, keys in (("lacks", missing), ("has in excess", unexpected)) if keys]
    if faults:
        raise OptionError(
            f"{path}: does not fit {type(module).__name__}: {' and '.join(faults)}; expected the state dict of this "
            "architecture"
        )


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as err:
        raise OptionError(f"{path}: cannot be read: {err.strerror or err}; expected a state dict") from err
    except Exception as err:  # torch's readers raise whatever damaged bytes lead them to
        raise OptionError(
            f"{path}: cannot be loaded as plain tensors: {_pickle_reason(err)}; expected a state dict, written by "
            "torch.save(module.state_dict(), FILE)"
        ) from err
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise OptionError(f"{path}: holds {_shown(content)}; expected a state dict, tensors by name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise OptionError(f"{path}: entry {key!r} is a {type(value).__name__}; expected a state dict of tensors")
    return cast("dict[str, torch.Tensor]", content)  # not a copy, which would lose the versions of its modules


def _export(factory: str, module: torch.nn.Module, image_shape: tuple[int, int, int]) -> ir.Model:
    import torch

    images = torch.zeros(2, *image_shape)  # torch takes a size of 1 for a fixed one
    dynamic = ({0: torch.export.Dim("batch")},)
    try:
        with _silence():
            exported = torch.export.export(module, (images,), dynamic_shapes=dynamic)
            _pool_by_mean(exported)
            program = torch.onnx.export(
                exported, dynamo=True, dynamic_shapes=dynamic, input_names=["image"], verbose=False
            )
    except Exception as err:  # the exporter passes on whatever the module's own code raises
        reason: BaseException = err
        while reason.__cause__ is not None:
            reason = reason.__cause__
        raise ModelError(
            f"factory {factory!r}: torch cannot export the {type(module).__name__} to ONNX for images "
            f"[batch, {', '.join(map(str, image_shape))}]: {_reason(reason)}; expected a module that torch.export takes"
        ) from err
    if program is None:
        raise ModelError(f"factory {factory!r}: torch exported nothing; expected an ONNX program")
    model: ir.Model = program.model
    return model


def _pool_by_mean(exported: torch.export.ExportedProgram) -> None:
    """Write each average pooling to 1×1 as the mean over H and W that it is.

    torch decomposes it by itself too, but then, for a tensor whose channels lie last in memory (ConvNeXt), also copies
    strides that ONNX knows nothing of: by a Gather whose indices are computed from the batch size.
    """
    import torch

    for node in exported.graph.nodes:
        if node.target is torch.ops.aten.adaptive_avg_pool2d.default and set(node.args[1]) == {1}:
            node.target, node.args = torch.ops.aten.mean.dim, (node.args[0], [-1, -2], True)


def _strip(model: ir.Model) -> None:
    """Remove what the exporter notes about the module's source code, with absolute paths."""
    ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    model.metadata_props.clear()
    made = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *made):
        value.metadata_props.clear()
        value.doc_string = None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's progress, log and warnings about torch's own code from the user; errors are raised."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        for category in _EXPORTERS_WARNINGS:
            warnings.simplefilter("ignore", category)
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _reason(err: BaseException) -> str:
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__


def _pickle_reason(err: Exception) -> str:
    """Return the line of torch's advice in which the unpickler says what it met."""
    lines = [line.strip() for line in str(err).splitlines()]
    own = [line.partition("WeightsUnpickler error: ")[2] for line in lines if "WeightsUnpickler error: " in line]
    return own[0] if own else _reason(err)


def _shown(content: object) -> str:
    return "nothing" if isinstance(content, dict) else f"a {type(content).__name__}"


def _listed(keys: list[str]) -> str:
    more = len(keys) - _NAMED_KEYS
    return ", ".join(map(repr, sorted(keys)[:_NAMED_KEYS])) + (f" and {more} more" if more > 0 else "")
