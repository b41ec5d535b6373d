"""Classify images: one class per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from annotated_types import Len

from trainer.constraints import Count, Finite, PositiveOrInfinite, Rule, validated
from trainer.errors import did_you_mean, format_error, raise_if_any
from trainer.protocols import Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.augmentation import OPERATIONS, Mixing, mixed_target
from trainer.task.class_targets import ClassTarget
from trainer.task.images import Images
from trainer.task.supervised import SupervisedTask

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

_TOP = 5

_RULES = (
    Rule(
        "mean == 'auto' or channels != 'auto'",
        key="mean",
        problem="needs a fixed number of channels",
        remedy="Set task.channels to 1 or 3",
    ),
    Rule(
        "mean == 'auto' or channels == 'auto' or len(mean) == channels",
        key="mean",
        problem="must be auto, or a list of {channels}, one number per channel",
    ),
    Rule(
        "std == 'auto' or channels != 'auto'",
        key="std",
        problem="needs a fixed number of channels",
        remedy="Set task.channels to 1 or 3",
    ),
    Rule(
        "std == 'auto' or channels == 'auto' or len(std) == channels",
        key="std",
        problem="must be auto, or a list of {channels}, one number per channel",
    ),
    Rule(
        "augment['crop'] >= 0 and augment['crop'] % 1 == 0",
        key="augment.crop",
        problem="must be a whole number and at least 0",
    ),
    Rule(
        "0 <= augment['flip'] <= 1",
        key="augment.flip",
        problem="must be between 0 and 1",
    ),
    Rule(
        "0 <= augment['rotate'] <= 180",
        key="augment.rotate",
        problem="must be between 0 and 180",
    ),
    Rule(
        "0 <= augment['brightness'] <= 1",
        key="augment.brightness",
        problem="must be between 0 and 1",
    ),
    Rule(
        "0 <= augment['contrast'] <= 1",
        key="augment.contrast",
        problem="must be between 0 and 1",
    ),
    Rule(
        "augment['cutout'] >= 0 and augment['cutout'] % 1 == 0",
        key="augment.cutout",
        problem="must be a whole number and at least 0",
    ),
    Rule(
        "0 <= augment['mixup'] < 1e999",
        key="augment.mixup",
        problem="must be finite and at least 0",
    ),
    Rule(
        "0 <= augment['cutmix'] < 1e999",
        key="augment.cutmix",
        problem="must be finite and at least 0",
    ),
    Rule(
        "0 <= augment['mix_prob'] <= 1",
        key="augment.mix_prob",
        problem="must be between 0 and 1",
    ),
)


class ImageClassification(SupervisedTask):
    """Predict one of K classes for an image.

    Args:
        size: Height and width in pixels, or one number for both; `auto` takes the size of the training images, which
            must all have one size.
        channels: 1 for gray, 3 for color; `auto` is 1 if all training images are gray.
        resize: How to fit an image of another size: `stretch` it, `crop` the middle, or `pad` with black.
        mean: Mean of each channel of pixels from 0 to 1; `auto` measures the training images.
        std: Standard deviation of each channel of pixels from 0 to 1; `auto` measures the training images.
        augment: Amounts of random changes in training: `crop`, `flip`, `rotate`, `brightness`, `contrast`, `cutout`;
            `mixup`, `cutmix` and `mix_prob` mix each image with another one, and the targets become `shares`.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1", "top_5_accuracy")
    target: Target = "class"
    inputs: Inputs = "images"
    script = ("images", "classes")
    shares_by = ("augment.mixup", "augment.cutmix")

    @validated(*_RULES)
    def __init__(
        self,
        *,
        size: Literal["auto"] | Count | Annotated[list[Count], Len(2, 2)],
        channels: Literal["auto", 1, 3],
        resize: Literal["stretch", "crop", "pad"],
        mean: Literal["auto"] | list[Finite],
        std: Literal["auto"] | list[PositiveOrInfinite],
        augment: Mapping[str, float],
    ) -> None:
        known = [*OPERATIONS, "mixup", "cutmix", "mix_prob"]
        raise_if_any(
            *(
                format_error(f"augment.{name}", "unknown operation", did_you_mean(name, known))
                for name in augment
                if name not in known
            )
        )
        self.images = Images(size, channels, resize, mean, std, augment)
        self.mixing = Mixing(augment)
        self.train_target: Target = "shares" if self.mixing else "class"
        self.class_target = ClassTarget()
        super().__init__("image_classification/1", ("image",), self.images, self.class_target)

    def extra_rows(self, rng: SampleRng) -> list[int]:
        """Return the row that each training sample is mixed with; `collate` gets these rows after the samples."""
        return self.mixing.partners(rng) if rng.training and self.mixing else []

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        extra = self.extra_rows(rng)
        inputs = self.images.pixel_inputs(rows, rng.for_samples([*rng.ids, *extra]))
        count = len(rng.ids)
        if not extra:
            return Batch(inputs, self.class_target.to_tensor(rows["label"]), count, tuple(rng.ids))
        pixels = inputs["pixel_values"]
        mixed, weights = self.mixing.mix(pixels[:count], pixels[count:], rng)
        classes = np.array(rows["label"], dtype=np.int64)
        target = mixed_target(classes[:count], classes[count:], weights, len(self.class_target.classes.labels))
        return Batch({"pixel_values": mixed}, target, count, tuple(rng.ids))

    def collate_bytes(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Return a batch whose pixels are standardized on the device, unless images are mixed: that comes after."""
        if self.extra_rows(rng):
            return self.collate(rows, rng, batching)
        pixels = torch.from_numpy(self.images.pixel_bytes(rows, rng))
        target = self.class_target.to_tensor(rows["label"])
        return Batch({"pixel_values": pixels}, target, len(rng.ids), tuple(rng.ids), scale=self.images.scale())

    def info(self) -> TaskInfo:
        return replace(super().info(), train_target=self.train_target)

    def metrics(self) -> MetricCollection:
        """Return accuracy and macro F1; for more than 5 classes also the rate of targets among the 5 highest scores."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        count = len(self.class_target.classes.labels)
        metrics = super().metrics()
        if count <= _TOP:
            return metrics
        top = MulticlassAccuracy(count, top_k=_TOP, average="micro")
        # Shared states would merge both accuracies for good if they are equal on the first batch.
        return MetricCollection({**dict(metrics.items()), f"top_{_TOP}_accuracy": top}, compute_groups=False)
