"""The files beside the script."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
Row = dict[str, Any]
Inputs = dict[str, np.ndarray]


@cache
def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))
