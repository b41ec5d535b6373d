"""What the tasks over images share: decoding them once, standardizing their pixels, exported inputs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from trainer.errors import DataError, RowError, format_error, raise_if_any
from trainer.protocols import Batching, Columns
from trainer.task.augmentation import OPERATIONS, amount_faults, augment
from trainer.task.image_decoding import decode

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from torch import Tensor

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)

_NUM_SAMPLED = 10_000


class Images:
    """Images as standardized pixels.

    An image is turned as its EXIF orientation says, of several frames the first is taken, transparent pixels are laid
    over white, 16 bits become 8. What is `auto` is learnt from at most 10,000 images, evenly spread over the training
    split.

    Args:
        size: Height and width in pixels, or a number for both; auto: that of the training images, where all have one.
        channels: 1 for grey, 3 for colour; auto: 1 where all training images are grey.
        resize: How an image of another size is fitted: `stretch` it, `crop` the middle, or `pad` with black.
        mean: Mean of each channel, of pixels from 0 to 1; auto: that of the training images.
        std: Standard deviation of each channel, likewise.
        augment: Amounts of the operations of `trainer.task.augmentation`, in training alone.

    Raises:
        ConfigError: A value is out of range.
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
        faults = [*amount_faults(augment), *_channel_faults(channels, mean, std)]
        if size != "auto" and (len(sides) != 2 or min(sides) < 1):
            faults.append(format_error("size", "must be auto, pixels, or a list of height and width", value=size))
        if resize not in ("stretch", "crop", "pad"):
            faults.append(format_error("resize", "must be one of stretch, crop, pad", value=resize))
        raise_if_any(*faults)
        self.size: tuple[int, ...] = sides
        self.channels = 0 if channels == "auto" else int(channels)
        self.resize = resize
        self.mean = [] if isinstance(mean, str) else list(mean)
        self.std = [] if isinstance(std, str) else list(std)
        self.augment = dict(augment)
        self._key = (list(sides), self.channels, resize, self.mean.copy(), self.std.copy())

    def key(self) -> tuple[Any, ...]:
        """What `learn` and `encode` depend on beside the data; JSON."""
        return self._key

    def learn(self, train: Dataset, roles: Sequence[str]) -> None:
        """Takes what is `auto` from the column of images, `roles`, of the training split.

        Images that cannot be decoded are passed over: `encode` says which they are.

        Raises:
            DataError: The size is to be learnt and there are several, or no image can be decoded.
        """
        (role,) = roles
        if not self.size or not self.channels:
            self._learn_shape(train, role)
        if not self.mean or not self.std:
            mean, std = self._moments(train, role)
            self.mean, self.std = self.mean or mean, self.std or std

    def encode(self, images: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns `pixels` (bytes, H * W * C) and `resized` (whether the image had another size).

        Raises:
            RowError: An image cannot be decoded.
        """
        columns: dict[str, list[Any]] = {"pixels": [], "resized": []}
        for position, image in enumerate(images):
            try:
                decoded = decode(image)
            except Exception as error:  # PIL and its decoders agree on no type
                reason = " ".join(str(error).split()) or type(error).__name__
                value = image["path"] if image["bytes"] is None else f"{len(image['bytes'])} bytes"
                message = format_error("image", f"cannot be decoded ({reason})", value=value)
                raise RowError(position, "image", message) from error
            columns["pixels"].append(self._fitted(decoded).tobytes())
            columns["resized"].append(decoded.size[::-1] != self.size)
        return columns

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs the shape of the images and how many are resized to it."""
        height, width = self.size
        colour = "grey" if self.channels == 1 else "in colour"
        for split, rows in encoded.items():
            resized = 100 * rows.with_format("numpy")["resized"][:].mean()
            told = "%s: %d images of %d x %d pixels, %s, %.1f %% of them resized (%s)"
            logger.info(told, split, len(rows), height, width, colour, resized, self.resize)
        return []

    def inputs(self, rows: Columns, draws: SampleRng | None) -> dict[str, Tensor]:
        """`pixel_values` (B, C, H, W) of encoded rows; augmented where they are drawn to be trained on."""
        shape = (*self.size, self.channels)
        images = [np.frombuffer(pixels, dtype=np.uint8).reshape(shape) for pixels in rows["pixels"]]
        if draws is not None and draws.training and any(self.augment.get(name) for name in OPERATIONS):
            images = [augment(image, self.augment, draws.generator(position)) for position, image in enumerate(images)]
        return {"pixel_values": self._standardized(np.stack(images))}

    def model_inputs(self, rows: Columns, batching: Batching) -> dict[str, Tensor]:
        """The model's inputs for encoded rows as they are, in any layout."""
        return self.inputs(rows, None)

    @staticmethod
    def lengths(encoded: Dataset) -> None:
        return None

    def info_fields(self) -> dict[str, Any]:
        return {"image_channels": self.channels, "image_size": self.size}

    def axes(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "batch"}}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Random images."""
        shape = (sizes["batch"], *self.size, self.channels)
        return {"pixel_values": self._standardized(generator.integers(256, size=shape, dtype=np.uint8))}

    def artifact_files(self) -> dict[str, str]:
        """`image.json`: the graph reads (value / 255 - mean) / std of pixels fitted to `size` by `resize`, bilinear."""
        settings = {**self._learnt(), "resize": self.resize, "interpolation": "bilinear"}
        return {"image.json": json.dumps(settings, indent=1) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._learnt()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        learnt = state["images"]
        self.size, self.channels = tuple(learnt["size"]), int(learnt["channels"])
        self.mean, self.std = list(learnt["mean"]), list(learnt["std"])

    def _learnt(self) -> dict[str, Any]:
        return {"size": list(self.size), "channels": self.channels, "mean": self.mean, "std": self.std}

    def _learn_shape(self, train: Dataset, role: str) -> None:
        sizes: set[tuple[int, int]] = set()
        modes = set()
        for image in _sampled(train, role):
            sizes.add((image.height, image.width))
            modes.add(image.mode)
        if not sizes:
            raise DataError(format_error("image", "must be images, and none of training can be decoded"))
        if not self.size and len(sizes) > 1:
            low, high = ("{} x {}".format(*size) for size in (min(sizes), max(sizes)))
            remedy = "Set it, such as task.size=224 or task.size=[224,320], and task.resize"
            problem = f"must be given: the training images have several, {low} and {high} among them"
            raise DataError(format_error("task.size", problem, remedy, value="auto"))
        self.size = self.size or sizes.pop()
        self.channels = self.channels or (1 if modes == {"L"} else 3)

    def _moments(self, train: Dataset, role: str) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels from 0 to 1; a constant channel has 1."""
        count, total, squares = 0, np.zeros(self.channels, dtype=np.int64), np.zeros(self.channels, dtype=np.int64)
        for image in _sampled(train, role):
            values = self._fitted(image).reshape(-1, self.channels).astype(np.int64)
            count += len(values)
            total += values.sum(axis=0)
            squares += (values**2).sum(axis=0)
        if not count:
            raise DataError(format_error("image", "must be images, and none of training can be decoded"))
        # In whole numbers, so that nothing is lost where the mean is large beside the spread.
        spread = [count * square - whole**2 for whole, square in zip(total.tolist(), squares.tolist(), strict=True)]
        std = [float(np.sqrt(value) / count / 255) if value else 1.0 for value in map(float, spread)]
        return [whole / count / 255 for whole in total.tolist()], std

    def _fitted(self, image: Image) -> np.ndarray:
        """The pixels of a decoded image, uint8 (H, W, C)."""
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

    def _standardized(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, H, W, C) to float32 (B, C, H, W)."""
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        values = (pixels.astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def _sampled(train: Dataset, role: str) -> Iterator[Image]:
    """At most 10,000 images of a split, those that can be decoded."""
    count = len(train)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _NUM_SAMPLED)).astype(np.int64))
    for batch in train.select_columns(role).select(chosen).iter(100):
        for image in batch[role]:
            try:
                decoded = decode(image)
            except Exception:  # as in `encode`, which names the row
                continue
            yield decoded


def _channel_faults(channels: str | int, mean: str | Sequence[float], std: str | Sequence[float]) -> list[str]:
    faults = []
    if channels not in ("auto", 1, 3):
        faults.append(format_error("channels", "must be auto, 1 or 3", value=channels))
    for name, values in (("mean", mean), ("std", std)):
        if values == "auto":
            continue
        if channels == "auto":
            faults.append(format_error(name, "needs a number of channels beside it", "Set task.channels", value=values))
        elif isinstance(values, str) or len(values) != channels:
            problem = f"must be auto, or a list of {channels}, one number for each channel"
            faults.append(format_error(name, problem, value=values))
        elif name == "std" and not min(values) > 0:
            faults.append(format_error(name, "must be above 0", value=list(values)))
    return faults
