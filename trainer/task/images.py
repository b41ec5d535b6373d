"""The input encoder of tasks that read images: decoding, standardized pixels, and exported inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
import torch

from trainer.errors import DataError, RowError, format_error
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.files.untrusted import LIMITS, Limits, open_input
from trainer.protocols import Batching, Columns, EncodedColumns, ImageCell, StateDict
from trainer.shapes import to_json
from trainer.task.augmentation import OPERATIONS, augment
from trainer.task.supervised import InputFields

if TYPE_CHECKING:
    import PIL.Image
    from datasets import Dataset
    from torch import Tensor

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)

_MAX_SAMPLED = 10_000

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded, whatever the suffix says; PIL would run another program for an EPS file."""

_GRAY_MODES = ("1", "L", "LA")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""The formats whose integers of mode `I` have 16 bits."""

_NUM_COMPARED = 100
_MIN_CONTRAST = 16
"""A smaller range of the pixels of the first images is a warning."""


class Images:
    """Encodes images as standardized pixels.

    An image is rotated to its EXIF orientation, only the first of several frames is used, transparent pixels are laid
    over white, and 16 bits become 8. `auto` settings are learned from at most 10,000 images, evenly spaced over the
    training split.

    Args:
        size: Height and width in pixels, or one number for both; `auto` takes the size of the training images, which
            must all have one size.
        channels: 1 for gray, 3 for color; `auto` is 1 if all training images are gray.
        resize: How to fit an image of another size: `stretch` it, `crop` the middle, or `pad` with black.
        mean: Mean of each channel of pixels from 0 to 1; `auto` measures the training images.
        std: Standard deviation of each channel of pixels from 0 to 1; `auto` measures the training images.
        augment: Amounts of the operations of `trainer.task.augmentation`, for training only.
    """

    def __init__(
        self,
        size: Literal["auto"] | int | Sequence[int],
        channels: Literal["auto"] | int,
        resize: Literal["stretch", "crop", "pad"],
        mean: Literal["auto"] | Sequence[float],
        std: Literal["auto"] | Sequence[float],
        augment: Mapping[str, float],
    ) -> None:
        sides = () if size == "auto" else (size, size) if isinstance(size, int) else tuple(size)
        self.size: tuple[int, ...] = sides
        self.channels = 0 if channels == "auto" else int(channels)
        self.resize = resize
        self.mean = [] if isinstance(mean, str) else list(mean)
        self.std = [] if isinstance(std, str) else list(std)
        self.augment = dict(augment)
        self._fingerprint_parts = (list(sides), self.channels, resize, self.mean.copy(), self.std.copy())

    def fingerprint_parts(self) -> tuple[object, ...]:
        return self._fingerprint_parts

    def fit(self, train: Dataset, roles: Sequence[str]) -> None:
        """Learn the `auto` settings from the column of images, `roles`, of the training split.

        Images that cannot be decoded are skipped here, because `encode` reports their positions.

        Raises:
            DataError: The size is `auto` and there are several, or no image can be decoded.
        """
        (role,) = roles
        if not self.size or not self.channels:
            self._fit_shape(train, role)
        if not self.mean or not self.std:
            mean, std = self._moments(train, role)
            self.mean, self.std = self.mean or mean, self.std or std

    def encode(self, images: Sequence[ImageCell]) -> EncodedColumns:
        """Return the columns `pixels` (bytes, H * W * C) and `resized` (True if the image had another size).

        Raises:
            RowError: An image cannot be decoded.
        """
        columns: EncodedColumns = {"pixels": [], "resized": []}
        for position, image in enumerate(images):
            try:
                decoded = decode_image(image)
            except Exception as error:  # PIL and its decoders agree on no type
                # An error of the system also names the path.
                reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
                value = image["path"] if image["bytes"] is None else f"{len(image['bytes'])} bytes"
                message = format_error("image", f"cannot be decoded ({reason})", value=value)
                raise RowError(position, "image", message) from error
            columns["pixels"].append(self._fit_size(decoded).tobytes())
            columns["resized"].append(decoded.size[::-1] != self.size)
        return columns

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log the shape of the images and the share that was resized; return a warning if they have no contrast."""
        height, width = self.size
        color = "gray" if self.channels == 1 else "color"
        for split, rows in encoded.items():
            resized = 100 * sum(as_array(chunk["resized"]).sum() for chunk in read_chunks(rows, "resized")) / len(rows)
            message = "%s: %d images of %d x %d pixels, %s, %.1f%% of them resized (%s)"
            logger.info(message, split, len(rows), height, width, color, resized, self.resize)
        first = next(read_chunks(encoded["train"], "pixels", size=_NUM_COMPARED))
        pixels = np.frombuffer(b"".join(first["pixels"].to_pylist()), dtype=np.uint8)
        low, high = int(pixels.min()), int(pixels.max())
        if high - low >= _MIN_CONTRAST:
            return []
        problem = f"image: the first pixels of training are all from {low} to {high} of 255"
        return [f"{problem}. Scale the images: images of 16 bits must use the numbers up to 65535"]

    def pixel_inputs(self, rows: Columns, rng: SampleRng | None) -> dict[str, Tensor]:
        """Return `pixel_values` (B, C, H, W) of encoded rows, augmented if `rng` is for training."""
        return {"pixel_values": self._standardize(self.pixel_bytes(rows, rng))}

    def pixel_bytes(self, rows: Columns, rng: SampleRng | None) -> np.ndarray:
        """Return the pixels of encoded rows, uint8 (B, H, W, C), augmented if `rng` is for training."""
        shape = (*self.size, self.channels)
        images = [np.frombuffer(pixels, dtype=np.uint8).reshape(shape) for pixels in rows["pixels"]]
        if rng is not None and rng.training and any(self.augment.get(name) for name in OPERATIONS):
            images = [augment(image, self.augment, rng.generator(position)) for position, image in enumerate(images)]
        return np.stack(images)

    def scale(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel of pixels from 0 to 1, float32 (C,)."""
        return torch.tensor(self.mean, dtype=torch.float32), torch.tensor(self.std, dtype=torch.float32)

    def model_inputs(self, rows: Columns, batching: Batching) -> dict[str, Tensor]:
        """Return the model's inputs for encoded rows without augmentation, in any layout."""
        return self.pixel_inputs(rows, None)

    @staticmethod
    def lengths(encoded: MappedRows) -> None:
        return None

    def info_fields(self) -> InputFields:
        return {"image_channels": self.channels, "image_size": self.size}

    def axes(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "batch"}}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Return random images."""
        shape = (sizes["batch"], *self.size, self.channels)
        return {"pixel_values": self._standardize(generator.integers(256, size=shape, dtype=np.uint8))}

    def artifact_files(self) -> dict[str, str]:
        """Return `image.json`: the graph reads (value / 255 - mean) / std of pixels fitted to `size` by `resize`."""
        settings = {**self._learned(), "resize": self.resize, "interpolation": "bilinear"}
        return {"image.json": to_json(settings, indent=1) + "\n"}

    def state_dict(self) -> StateDict:
        return {"images": self._learned()}

    def load_state_dict(self, state: StateDict) -> None:
        learned = state["images"]
        height, width = learned["size"]
        if not 0 < height * width <= Limits.pixels or learned["channels"] not in (1, 3):
            raise ValueError(f"images of {height} x {width} x {learned['channels']} are not possible")
        self.size, self.channels = (height, width), int(learned["channels"])
        self.mean, self.std = list(learned["mean"]), list(learned["std"])

    def _learned(self) -> StateDict:
        return {"size": list(self.size), "channels": self.channels, "mean": self.mean, "std": self.std}

    def _fit_shape(self, train: Dataset, role: str) -> None:
        sizes: set[tuple[int, int]] = set()
        modes = set()
        for image in _sample_images(train, role):
            sizes.add((image.height, image.width))
            modes.add(image.mode)
        if not sizes:
            raise DataError(format_error("image", "no image of the training split can be decoded"))
        if not self.size and len(sizes) > 1:
            low, high = ("{} x {}".format(*size) for size in (min(sizes), max(sizes)))
            remedy = "Set it, such as task.size=224 or task.size=[224,320], and task.resize"
            problem = f"cannot be auto because training images differ in size, such as {low} and {high}"
            raise DataError(format_error("task.size", problem, remedy, value="auto"))
        self.size = self.size or sizes.pop()
        self.channels = self.channels or (1 if modes == {"L"} else 3)

    def _moments(self, train: Dataset, role: str) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel of pixels from 0 to 1; 1 for a constant channel."""
        count, total, squares = 0, np.zeros(self.channels, dtype=np.int64), np.zeros(self.channels, dtype=np.int64)
        for image in _sample_images(train, role):
            values = self._fit_size(image).reshape(-1, self.channels).astype(np.int64)
            count += len(values)
            total += values.sum(axis=0)
            squares += (values**2).sum(axis=0)
        if not count:
            raise DataError(format_error("image", "no image of the training split can be decoded"))
        # Integers lose no digits if the mean is large compared with the spread.
        spread = [count * square - whole**2 for whole, square in zip(total.tolist(), squares.tolist(), strict=True)]
        std = [float(np.sqrt(value) / count / 255) if value else 1.0 for value in map(float, spread)]
        return [whole / count / 255 for whole in total.tolist()], std

    def _fit_size(self, image: PIL.Image.Image) -> np.ndarray:
        """Return the pixels of a decoded image in the task's size and channels, uint8 (H, W, C)."""
        from PIL import ImageOps
        from PIL.Image import Resampling

        height, width = self.size
        image = image.convert("L" if self.channels == 1 else "RGB")
        if image.size != (width, height):
            if self.resize == "stretch":
                image = image.resize((width, height), Resampling.BILINEAR)
            else:
                fit = ImageOps.fit if self.resize == "crop" else ImageOps.pad
                image = fit(image, (width, height), Resampling.BILINEAR)
        return np.asarray(image).reshape(height, width, self.channels)

    def _standardize(self, pixels: np.ndarray) -> Tensor:
        """Standardize uint8 (B, H, W, C) to float32 (B, C, H, W)."""
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        values = (pixels.astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def decode_image(image: ImageCell) -> PIL.Image.Image:
    """Decode the `bytes` or the file `path` of an image to 8 bits, mode `L` or `RGB`.

    Raises:
        Exception: The image cannot be decoded; the type depends on the format.
    """
    from PIL import Image, ImageOps

    if image["bytes"] is None and image["path"] is None:
        raise ValueError("neither bytes nor path")
    # Our own limit, which is checked before the pixels are decoded, replaces the one of PIL.
    Image.MAX_IMAGE_PIXELS = None
    source = open_input(Path(str(image["path"]))) if image["bytes"] is None else BytesIO(image["bytes"])
    with source, _open_image(source) as opened:
        if opened.width * opened.height > LIMITS.pixels:
            raise ValueError(f"{opened.width} x {opened.height} pixels are more than data.max_pixels={LIMITS.pixels}")
        file_format = opened.format
        rotated = ImageOps.exif_transpose(opened)
    if rotated.mode == "F" or (rotated.mode == "I" and file_format not in _SIXTEEN_BIT_FORMATS):
        raise ValueError("32 bits per pixel have no known range; convert the image to 8 or 16 bits")
    if rotated.mode.startswith("I"):
        return Image.fromarray((np.asarray(rotated).astype(np.int64) >> 8).astype(np.uint8))
    mode = "L" if rotated.mode in _GRAY_MODES else "RGB"
    if rotated.has_transparency_data:
        white = Image.new("RGBA", rotated.size, "white")
        rotated = Image.alpha_composite(white, rotated.convert("RGBA"))
    return rotated.convert(mode)


def _open_image(source: IO[bytes]) -> PIL.Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(source, formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(_FORMATS)}") from error


def _sample_images(train: Dataset, role: str) -> Iterator[PIL.Image.Image]:
    """Yield at most 10,000 evenly spaced images of a split, without those that cannot be decoded."""
    count = len(train)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _MAX_SAMPLED)).astype(np.int64))
    for batch in train.select_columns(role).select(chosen).iter(100):
        for image in batch[role]:
            try:
                decoded = decode_image(image)
            except Exception:  # as in `encode`, which reports the row
                continue
            yield decoded
