"""The graphs of a bundle, opened in a runtime."""

from threading import Lock

from engine.backends import Backend, Session
from engine.bundle import Bundle
from engine.contract import (
    expect_companion,
    expect_contract,
    expect_full_gradient,
    expect_gradient,
    expect_head,
)
from engine.errors import BundleError


class Network:
    """The graphs of a bundle: the two of Ada-SISE are opened at once, every other when it is first asked for.

    Each holds a copy of the weights that it needs. Any number of threads may use it.

    Args:
        bundle: The compiled model.
        backend: The runtime that executes its graphs.

    Raises:
        BundleError: A graph has other inputs or outputs than the manifest says.
        BackendError: The runtime refused a graph.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._bundle = bundle
        self._backend = backend
        self._lock = Lock()
        tapped, forward = backend.open(bundle.tapped), backend.open(bundle.forward, many_runs=True)
        expect_contract(bundle, tapped, forward)
        self._sessions: dict[str, Session] = {"tapped": tapped, "forward": forward}

    def session(self, graph: str) -> Session:
        """Return one of the bundle's graphs, by the name of its file without `.onnx`.

        Raises:
            BundleError: The bundle has no such graph, or another than its manifest says.
            BackendError: The runtime refused it.
        """
        with self._lock:
            if graph not in self._sessions:
                self._sessions[graph] = self._open(graph)
            return self._sessions[graph]

    def _open(self, graph: str) -> Session:
        bundle = self._bundle
        if graph in ("gradient", "full_gradient") and bundle.no_gradient is not None:
            raise BundleError(
                f"{bundle.path}: has no {graph}.onnx, which this method needs: {bundle.no_gradient}; choose a method "
                "that needs no gradient at the image"
            )
        session = self._backend.open(bundle.path / f"{graph}.onnx", many_runs=graph == "head")
        if graph == "head":
            expect_head(bundle, session)
        elif graph == "gradient":
            expect_gradient(bundle, session)
        elif graph == "full_gradient":
            expect_full_gradient(bundle, session)
        else:
            expect_companion(bundle, graph.removesuffix(".grad"), session)
        return session
