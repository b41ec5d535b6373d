"""A Python with only the standard library and the packages that the scripts of an export folder may need."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "tokenizers", "PIL", "pillow.libs")
"""The packages for the scripts; the `.libs` contain the libraries that the packages link to."""


def bare(folder: Path) -> Path:
    """Create a folder with only the packages that the scripts may need."""
    packages = folder / "packages"
    packages.mkdir()
    for name in PACKAGES:
        installed = Path(str(find_spec("numpy").origin)).parent.parent / name  # type: ignore[union-attr]
        if installed.exists():
            (packages / name).symlink_to(installed)
    return packages


def run_bare(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python with only the standard library and `packages`."""
    start = (
        f"import runpy, sys; sys.path.append({str(packages)!r}); sys.argv = sys.argv[1:]; "
        "code = 0\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'trainer', 'transformers'} & {*sys.modules}\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-I", "-S", "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
