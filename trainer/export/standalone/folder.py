"""The files beside the script."""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
Row = dict[str, Any]
Inputs = dict[str, np.ndarray]


@cache
def read_json(name: str) -> Any:
    return opened(name, lambda path: json.loads(Path(path).read_text("utf-8")))


def opened(name: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(str(FOLDER / name))
    except Exception as error:  # of many types; without the file nothing can be answered
        problem = "is damaged" if (FOLDER / name).exists() else "is missing"
        print(f"{FOLDER / name}: {problem}. Get the folder again.", file=sys.stderr)
        raise SystemExit(3) from error
