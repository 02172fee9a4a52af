import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import engine
from engine import errors

REPOSITORY = Path(__file__).resolve().parents[1]


def exception_classes() -> dict[str, type[Exception]]:
    return {name: value for name, value in vars(errors).items() if isinstance(value, type)}


def test_all_lists_the_public_names() -> None:
    public = {
        name for name, value in vars(engine).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(engine.__all__) == public | {"__version__"}
    assert engine.__all__ == sorted(engine.__all__)


def test_every_error_is_public() -> None:
    for name, error in exception_classes().items():
        assert getattr(engine, name) is error


def test_public_names_are_documented() -> None:
    for name in engine.__all__:
        value = getattr(engine, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name
            assert value.__module__.split(".")[0] == "engine"


def test_the_version_is_the_distributions() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", engine.__version__)
    assert engine.__version__ == importlib.import_module("engine._version").__version__


def test_the_readme_lists_the_extras() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = readme.split("| extra | brings | for |")[1].split("\n\n")[0]
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    assert re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE) == [
        name for name in extras if name not in ("demo", "dev")
    ]


def drawn_tree(docstring: str) -> dict[str, str | None]:
    """Each class that a docstring's tree draws, and the class it hangs from."""
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in docstring.splitlines():
        match = re.match(r"^    ([│├└─ ]*)([A-Z]\w+Error)\b", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        while path and path[-1][0] >= depth:
            path.pop()
        assert name not in parents, f"{name} is drawn twice"
        parents[name] = path[-1][1] if path else None
        path.append((depth, name))
    return parents


def test_the_tree_in_errors_is_the_tree_of_classes() -> None:
    classes = exception_classes()
    assert len(classes) >= 10
    actual = {
        name: None if error.__bases__ == (Exception,) else error.__bases__[0].__name__
        for name, error in classes.items()
    }
    assert drawn_tree(errors.__doc__ or "") == actual


def test_every_error_descends_from_engine_error() -> None:
    for error in exception_classes().values():
        assert issubclass(error, errors.EngineError)
        assert error.__module__ == "engine.errors"
    assert issubclass(errors.MissingRuntimeError, ImportError)


def test_no_error_is_defined_elsewhere() -> None:
    found = set()
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        # the last two are imported by Triton alone, and where CuPy is installed
        if not module.name.endswith(("__main__", "triton.model", "cupy_device")):
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.name:
                    found.add((module.name, name))
    assert found == {("engine.errors", name) for name in exception_classes()}


def imported_by(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("statement", ["import engine", "import engine.kernels", "import engine.__main__"])
def test_the_run_time_does_without_the_exporters_libraries(statement: str) -> None:
    modules = imported_by(statement)
    assert "engine.explainer" in modules
    assert not {"onnx", "onnx_ir", "torch", "scipy", "engine.export"} & modules


def test_the_exporter_does_without_torch() -> None:
    modules = imported_by("import engine.export")
    assert {"onnx", "onnx_ir", "engine.export.compile"} <= modules
    assert not {"torch", "onnxscript", "scipy"} & modules
