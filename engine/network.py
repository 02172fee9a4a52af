"""The graphs of a bundle, opened in a runtime."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from engine.backends import Backend, Session
from engine.bundle import Bundle, expect_unchanged
from engine.contract import (
    expect_companion,
    expect_forward,
    expect_full_gradient,
    expect_gradient,
    expect_head,
    expect_last_layer,
    expect_tapped,
)
from engine.errors import BundleError, OptionError
from engine.resident import Resident

Floats = NDArray[np.float32]

FORWARD = "forward"
_CHECKS = {
    "last_layer": expect_last_layer,
    "head": expect_head,
    "gradient": expect_gradient,
    "full_gradient": expect_full_gradient,
    "tapped": expect_tapped,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tapped:
    """What the tapped pass gave for one image.

    Attributes:
        maps: F_l of each layer, float32 [C_l, h_l, w_l].
        averages: α_l of each layer for the K classes, float32 [K, C_l]: the sum of ∂logit/∂F_l over h and w.
    """

    maps: tuple[Floats, ...]
    averages: tuple[Floats, ...]


def open_scorer(bundle: Bundle, backend: Backend, precision: str) -> Session:
    """Open the graph that scores masks.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes it.
        precision: In what.

    Raises:
        OptionError: The backend has no such precision.
        BundleError: The graph has other inputs or outputs than the manifest says, or there is none of the precision.
        BackendError: The runtime refused it.
    """
    expect_precision(backend, precision)
    file = bundle.int8 if precision == "int8" else bundle.forward
    if file is None:
        raise BundleError(
            f"{bundle.path}: has no {FORWARD}.int8.onnx, which precision 'int8' needs; export the model again with "
            "--int8 --calibrate PHOTOS"
        )
    if precision == "int8" and bundle.int8_disagreement is not None:
        raise BundleError(
            f"{file}: is not usable: {bundle.int8_disagreement}; export the model again with more or other photos to "
            "calibrate on, of the kind that the model sees, or take precision 'float32'"
        )
    session = backend.open(file, many_runs=True, precision=precision)
    expect_forward(bundle, session, file.stem)
    return session


def expect_precision(backend: Backend, precision: str) -> None:
    """Check that masks can be scored in a precision.

    Raises:
        OptionError: The backend has no such precision.
    """
    if precision not in backend.precisions:
        raise OptionError(f"precision is {precision!r}; expected one of {', '.join(backend.precisions)} on this device")


class Network:
    """The graphs of a bundle: the two of Ada-SISE are opened at once, every other when it is first asked for.

    Each holds a copy of the weights that it needs. Any number of threads may use it.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes its graphs.
        precision: In what masks are scored; everything else is float32.
        batch_size: Masked images that a GPU scores at a time.

    Raises:
        OptionError: The backend has no such precision.
        BundleError: A graph has other inputs or outputs than the manifest says, or there is none of the precision.
        BackendError: The runtime refused a graph.

    Attributes:
        precision: In what masks are scored.
        scorer: The graph that scores them: `forward`, or `forward.int8` … for another precision than float32.
        resident: Both in device memory, on a GPU; else None.
    """

    def __init__(self, bundle: Bundle, backend: Backend, precision: str = "float32", batch_size: int = 8) -> None:
        self.precision = precision
        self.scorer = FORWARD if precision == "float32" else f"{FORWARD}.{precision}"
        self._bundle = bundle
        self._backend = backend
        self._lock = Lock()
        self._sessions: dict[str, Session] = {}
        expect_precision(backend, precision)
        self.resident = None if backend.gpu is None else Resident(bundle, backend.gpu, precision, batch_size)
        if self.resident is None:
            scorer, tapped = open_scorer(bundle, backend, precision), backend.open(bundle.tapped)
            expect_tapped(bundle, tapped)
            self._sessions = {"tapped": tapped, self.scorer: scorer}

    def session(self, graph: str) -> Session:
        """Return one of the bundle's graphs.

        Args:
            graph: `tapped`, `forward`, `scorer`'s value, `last_layer`, `head`, `gradient`, `full_gradient`; or a
                gradient companion, `head.grad` or `block1.grad` ….

        Raises:
            BundleError: The bundle has no such graph, or another than its manifest says, or it was changed after it had
                been loaded.
            BackendError: The runtime refused it.
        """
        if not self.is_open(graph):
            with self._lock:
                if not self.is_open(graph):
                    self._sessions[graph] = self._open(graph)
        return self._sessions[graph]

    def is_open(self, graph: str) -> bool:
        """Tell whether a graph was asked for before."""
        return graph in self._sessions

    def _open(self, graph: str) -> Session:
        bundle = self._bundle
        if graph in (FORWARD, self.scorer):
            expect_unchanged(bundle, bundle.forward)
            return open_scorer(bundle, self._backend, "float32" if graph == FORWARD else self.precision)
        block = graph.removesuffix(".grad")
        file = self._file(graph)
        if file is None:
            raise BundleError(
                f"{bundle.path}: has no {graph}.onnx, which this method needs: {bundle.no_gradient}; choose a method "
                "that needs no gradient at the image"
            )
        expect_unchanged(bundle, file)
        session = self._backend.open(file, many_runs=graph == "head")
        if block != graph:
            expect_companion(bundle, block, session)
        else:
            _CHECKS[graph](bundle, session)
        return session

    def _file(self, graph: str) -> Path | None:
        """Return the file of a graph, or None if the bundle has none."""
        bundle = self._bundle
        if graph.endswith(".grad"):
            return bundle.companion(graph.removesuffix(".grad"))
        files = {
            "last_layer": bundle.last_layer,
            "head": bundle.head,
            "gradient": bundle.gradient,
            "full_gradient": bundle.full_gradient,
            "tapped": bundle.tapped,
        }
        return files[graph]
