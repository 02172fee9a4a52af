"""What the engine asks of a runtime."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.backends.threads import Threads
from engine.kernels.device import Array, Device

Placed: TypeAlias = tuple[Array, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a graph.

    Attributes:
        dtype: NumPy's name of the type of its elements.
        shape: One size per axis, None for an axis whose size is open.
    """

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


class Brake:
    """Stops a run that is under way in another thread.

    Attributes:
        pulled: Whether it was pulled.
    """

    def __init__(self) -> None:
        self.pulled = False
        self._lock = Lock()
        self._stop: Callable[[], object] | None = None

    def pull(self) -> None:
        """Stop the run as soon as the runtime can, now or when it begins; does not wait for it."""
        with self._lock:
            self.pulled = True
            if self._stop is not None:
                self._stop()

    @contextmanager
    def on(self, stop: Callable[[], object]) -> Iterator[None]:
        """Say how to stop the run that goes on within a `with` block.

        Args:
            stop: Makes the runtime end the run with an error, and returns at once.
        """
        with self._lock:
            self._stop = stop
            if self.pulled:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None


class Session(Protocol):
    """One loaded graph. Safe to run from several threads."""

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The graph's inputs, in its order."""
        ...

    @property
    def runs_at_once(self) -> int:
        """How many runs at a time make the best use of the machine."""
        ...

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The graph's outputs, in its order."""
        ...

    def run(self, inputs: Sequence[NDArray[np.generic]], brake: Brake | None = None) -> list[NDArray[np.generic]]:
        """Run the graph once.

        Args:
            inputs: One array for each graph input, in the graph's order. They stay the caller's; the session keeps
                none.
            brake: Stops this run before its end.

        Returns:
            One new array for each graph output, in the graph's order; they are the caller's.

        Raises:
            BackendError: The runtime refused the inputs, failed, or was stopped.
        """
        ...


class Bound(Protocol):
    """One loaded graph that takes and gives arrays in device memory."""

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The graph's inputs, in its order."""
        ...

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The graph's outputs, in its order."""
        ...

    def bind(self, inputs: Sequence[Placed], outputs: Sequence[Placed]) -> Callable[[], None]:
        """Say where the graph's inputs and outputs lie.

        Args:
            inputs: One array for each, in the graph's order, and the shape of what lies at its beginning.
            outputs: The same.

        Returns:
            What runs the graph once, on the device's stream: it returns before the device is done.
        """
        ...


class Gpu(Protocol):
    """A GPU with a runtime for graphs."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def memory(self) -> Device:
        """Its memory and kernels."""
        ...

    def open(self, graph: Path, *, precision: str = "float32", many_runs: bool = False) -> Bound:
        """Load a graph from a file, beside which its external data lies.

        Args:
            graph: The file.
            precision: In what to compute it; an input of half precision has the type `element`.
            many_runs: Whether it is run often, on arrays that stay where they are.

        Raises:
            BackendError: The runtime refused the graph.
        """
        ...

    def element(self, precision: str) -> type[np.generic]:
        """Return NumPy's type of the elements of scoring batches."""
        ...


class Backend(Protocol):
    """A runtime on a device.

    Args:
        threads: Threads that work on one explanation; None for one per CPU that this process may use.
        lanes: Runs at a time of a graph that is run often, which share the threads out; None for one per thread.
        spinning: Whether a thread that waits for the others of its run keeps its CPU busy; None for False.
        providers: ONNX Runtime's execution providers, in order of preference; None for the device's own.

    Attributes:
        device: Its name.
        precisions: In what it can score masks; `float32` comes first.
        can_spin: Whether `spinning` may be True.
        threads: What was asked for, with everything decided.
    """

    device: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    can_spin: ClassVar[bool]
    threads: Threads

    def __init__(
        self,
        *,
        threads: int | None = None,
        lanes: int | None = None,
        spinning: bool | None = None,
        providers: Sequence[str] | None = None,
    ) -> None: ...

    @property
    def runtime(self) -> str:
        """The runtime's name and version, and the GPU's name."""
        ...

    @property
    def gpu(self) -> Gpu | None:
        """Where everything can stay in device memory; None on a CPU."""
        ...

    def open(self, graph: Path | bytes, *, many_runs: bool = False, precision: str = "float32") -> Session:
        """Load a graph from a file, beside which its external data lies, or from the bytes of a model.

        Args:
            graph: The file, or the bytes.
            many_runs: Whether the graph will be run so often that several runs can be under way at a time; else one
                run has all threads.
            precision: One of `precisions`: in what to compute a graph of float32 operators. A graph with int8 operators
                has its precision in itself.

        Raises:
            BackendError: The runtime refused the graph.
        """
        ...
