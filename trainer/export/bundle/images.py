"""Makes model inputs of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from trainer.export.bundle.predict import Folder, Inputs, Row


class Images:
    """Reads images.

    Usage:
        python predict.py one.png another.jpg
        python predict.py rows.txt rows.jsonl rows.csv    a path per line, or the column `image`
        python predict.py < rows.txt
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def read_line(self, line: str) -> Row:
        return {"image": line}

    def encode(self, rows: list[Row]) -> Inputs:
        settings = self.folder.read_json("image.json")
        pixels = np.stack([resize(decode(row["image"]), settings) for row in rows]).astype(np.float32)
        mean, std = (np.array(settings[name], dtype=np.float32) for name in ("mean", "std"))
        return {"pixel_values": ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)}


READERS = {"images": Images}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def decode(path: str) -> Image.Image:
    with Image.open(path, formats=FORMATS) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode == "F" or (image.mode == "I" and file.format not in ("PNG", "PPM")):
            raise ValueError(f"{path}: 32 bits per pixel have no known range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


def resize(image: Image.Image, settings: Row) -> np.ndarray:
    height, width = settings["size"]
    image = image.convert("L" if settings["channels"] == 1 else "RGB")
    if image.size != (width, height) and settings["resize"] == "stretch":
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    elif image.size != (width, height):
        fit = ImageOps.fit if settings["resize"] == "crop" else ImageOps.pad
        image = fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, settings["channels"])
