"""What a report says of the machine: what matters for the figures, and nothing that names it."""

import platform
from pathlib import Path

import numpy as np
import pytest

from benchmarks.machine import listed, machine


def write_cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    """Replace what the system says of its processors; None where it says nothing."""
    read_text = Path.read_text

    def replaced(path: Path, encoding: str | None = None) -> str:
        if path != Path("/proc/cpuinfo"):
            return read_text(path, encoding)
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", replaced)


def test_facts_in_a_line() -> None:
    assert listed({"processor": "Fast CPU", "cores": 2}) == "processor Fast CPU, cores 2"


def test_processor_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["processor\t: 0", "model\t\t: 17", "model name\t: Fast CPU @ 2 GHz", "", "model name\t: Other"]
    write_cpuinfo(monkeypatch, "\n".join(lines))
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**21 + 2**18}.__getitem__)
    found = machine()
    assert found["processor"] == "Fast CPU @ 2 GHz"
    assert found["memory"] == "9.0 GiB"
    assert platform.node() not in map(str, found.values())
    assert found["numpy"] == np.__version__
    assert "torch" not in machine(["numpy"])


@pytest.mark.parametrize("text", [None, "processor\t: 0\nBogoMIPS\t: 50.00\n"])
def test_processor_without_a_model_name(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    write_cpuinfo(monkeypatch, text)
    monkeypatch.setattr(platform, "processor", lambda: "arm64")
    assert machine()["processor"] == "arm64"
