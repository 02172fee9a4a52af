"""The graphs of a bundle, opened in a runtime."""

from pathlib import Path
from threading import Lock

from engine.backends import Backend, Session
from engine.bundle import Bundle, expect_unchanged
from engine.contract import (
    expect_companion,
    expect_contract,
    expect_full_gradient,
    expect_gradient,
    expect_head,
)
from engine.errors import BundleError

_CHECKS = {"head": expect_head, "gradient": expect_gradient, "full_gradient": expect_full_gradient}


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
        """Return one of the bundle's graphs.

        Args:
            graph: `tapped`, `forward`, `head`, `gradient`, `full_gradient`; or a gradient companion, `head.grad` or
                `block1.grad` ….

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
        files = {"head": bundle.head, "gradient": bundle.gradient, "full_gradient": bundle.full_gradient}
        return files[graph]
