"""What loading a bundle and one explanation cost a process that does nothing else; prints JSON.

`python -m benchmarks.footprint NAME.ada INPUT.npy TARGET THREADS BATCH MASKS`. It is a program of its own because a
process that has imported torch, or was forked from one, would count that memory too.
"""

import json
import re
import sys
import time
from pathlib import Path


def peak_mb() -> float:
    """The most memory that this process has had since its start, in MB.

    Linux only: `ru_maxrss`, which other systems have as well, begins at the memory of the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status: has no VmHWM")
    return int(found[1]) * 1024 / 1e6


def main() -> None:
    """Load and explain once, and print what it took."""
    bundle, image, target, threads, batch, masks = sys.argv[1:]
    figures = {"start_mb": peak_mb()}
    began = time.perf_counter()
    import numpy as np  # its import is part of what is measured

    import engine

    figures |= {"import_s": time.perf_counter() - began, "imported_mb": peak_mb()}
    began = time.perf_counter()
    explainer = engine.load(bundle, threads=int(threads))
    figures |= {"load_s": time.perf_counter() - began, "loaded_mb": peak_mb()}
    explainer.explain(np.load(image), int(target), batch_size=int(batch), max_masks=int(masks))
    figures["peak_mb"] = peak_mb()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
