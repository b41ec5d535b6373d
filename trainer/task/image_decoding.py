"""Files of images as images of 8 bits, grey or in colour."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = ("1", "L", "LA")
_SIXTEEN_BITS = ("PNG", "PPM")
"""The formats whose integers of mode `I` are of 16 bits."""


def decode(image: Mapping[str, Any]) -> Image:
    """The `bytes` or the file `path` of an image as one of mode `L` or `RGB`.

    Raises:
        Exception: It cannot be decoded; of which type depends on the format.
    """
    from PIL import ImageOps
    from PIL.Image import alpha_composite, fromarray, new
    from PIL.Image import open as open_image

    source = image["path"] if image["bytes"] is None else BytesIO(image["bytes"])
    if source is None:
        raise ValueError("there is none")
    with open_image(source) as opened:
        kind = opened.format
        turned = ImageOps.exif_transpose(opened)
    if turned.mode == "F" or (turned.mode == "I" and kind not in _SIXTEEN_BITS):
        raise ValueError("32 bits a pixel have no known range; convert it to 8 or 16 bits")
    if turned.mode.startswith("I"):
        return fromarray((np.asarray(turned).astype(np.int64) >> 8).astype(np.uint8))
    mode = "L" if turned.mode in _GREY else "RGB"
    if turned.has_transparency_data:
        white = new("RGBA", turned.size, "white")
        turned = alpha_composite(white, turned.convert("RGBA"))
    return turned.convert(mode)
