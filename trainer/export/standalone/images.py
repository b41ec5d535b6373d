"""Reads images.

Usage:
    python predict.py one.png another.jpg
    python predict.py rows.txt rows.jsonl rows.csv    a path a line, or the column `image`
    python predict.py < rows.txt
"""

import numpy as np
from PIL import Image, ImageOps

from trainer.export.standalone.folder import Inputs, Row, read_json


def read_line(line: str) -> Row:
    return {"image": line}


def encode(rows: list[Row]) -> Inputs:
    settings = read_json("image.json")
    pixels = np.stack([fitted(decoded(row["image"]), settings) for row in rows]).astype(np.float32)
    mean, std = (np.array(settings[name], dtype=np.float32) for name in ("mean", "std"))
    return {"pixel_values": ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)}


def decoded(path: str) -> Image.Image:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F" or (image.mode == "I" and opened.format not in ("PNG", "PPM")):
            raise ValueError(f"{path}: 32 bits a pixel have no known range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode)


def fitted(image: Image.Image, settings: Row) -> np.ndarray:
    height, width = settings["size"]
    image = image.convert("L" if settings["channels"] == 1 else "RGB")
    if image.size != (width, height) and settings["resize"] == "stretch":
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    elif image.size != (width, height):
        fit = ImageOps.fit if settings["resize"] == "crop" else ImageOps.pad
        image = fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, settings["channels"])
