"""Print constraints for pip: the lowest version of each dependency that pyproject.toml allows.

    python scripts/lowest.py > constraints-lowest.txt

A bound such as 2.11 allows its patch releases, the newest of which is taken.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def main() -> None:
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in sorted({*project["dependencies"], *(each for extra in extras.values() for each in extra)}):
        match = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if match:
            name, version = match.groups()
            print(f"{name}=={version if version.count('.') else f'{version}.0'}.*")


if __name__ == "__main__":
    main()
