"""Encoded images: the struct of `bytes` and `path` in which a source gives them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b, file_digest
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The files of a folder that are taken for images."""


def digest_of(image: Mapping[str, Any]) -> str:
    """Of the bytes of an encoded image, in memory or in its file.

    Raises:
        OSError: The file cannot be read.
    """
    if image["bytes"] is not None:
        return blake2b(image["bytes"], digest_size=16).hexdigest()
    return file_digest_of(Path(image["path"]))


def file_digest_of(path: Path) -> str:
    """Of the bytes of a file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def png(pixels: np.ndarray) -> dict[str, Any]:
    """Pixels uint8 (H, W) as an encoded image, grey and without loss."""
    from PIL import Image

    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", compress_level=1)
    return {"bytes": encoded.getvalue(), "path": None}
