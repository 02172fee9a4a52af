"""Builds the wheel and checks it: its file list, and that it works in a clean venv away from the checkout.

Run it as `python -m scripts.check_wheel` from the repository's root; it needs the extra `dev`.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "scripts" / "smoke.py"
SHIPPED = (".py", ".json", ".cu", ".cuh", "py.typed")


def main() -> None:
    """Build, compare, install, try."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", str(work), str(ROOT))
        (wheel,) = work.glob("*.whl")
        check_contents(wheel)
        venv.create(work / "venv", with_pip=True)
        python = str(work / "venv" / "bin" / "python")
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=work)
        message = subprocess.run([python, "-c", "import engine"], cwd=work, capture_output=True, text=True).stderr
        if "pip install 'ada-sise-engine[cpu]'" not in message:
            sys.exit(f"importing the engine without an ONNX Runtime says {message!r}; expected it to name the extra")
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[cpu]", cwd=work)
        run(python, str(SMOKE), cwd=work)
    print(f"{wheel.name}: contents are right, and it works in a clean venv")


def check_contents(wheel: Path) -> None:
    """Compare the wheel's file list with the files that git tracks under engine/."""
    tracked = subprocess.run(
        ["git", "ls-files", "engine"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    expected = {name for name in tracked if name.endswith(SHIPPED)}
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name}
    if packed != expected:
        sys.exit(f"{wheel.name}: missing {sorted(expected - packed)}, not expected {sorted(packed - expected)}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name}: holds no LICENSE")


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command and stop when it fails."""
    subprocess.run(command, cwd=cwd, check=True)


if __name__ == "__main__":
    main()
