"""What the engine asks of a runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """One loaded graph. Safe to run from several threads."""

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run the graph once.

        Args:
            inputs: One array for each graph input, in the graph's order. They stay the caller's; the session keeps
                none.

        Returns:
            One new array for each graph output, in the graph's order; they are the caller's.

        Raises:
            BackendError: The runtime refused the inputs or failed.
        """
        ...


class Backend(Protocol):
    """A runtime on a device.

    Args:
        threads: Threads that work on one graph; None for the runtime's own choice.
    """

    def __init__(self, *, threads: int | None = None) -> None: ...

    def open(self, graph: Path | bytes) -> Session:
        """Load a graph from a file, beside which its external data lies, or from the bytes of a model.

        Raises:
            BackendError: The runtime refused the graph.
        """
        ...
