"""One label for one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from trainer.protocols import Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.images import Images
from trainer.task.label import Label
from trainer.task.mixing import Mixing, class_shares
from trainer.task.supervised import Supervised

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

_TOP = 5


class ImageClassification(Supervised):
    """Image in, one of K classes out.

    Args:
        size: Height and width in pixels, or a number for both; auto: that of the training images, where all have one.
        channels: 1 for grey, 3 for colour; auto: 1 where all training images are grey.
        resize: How an image of another size is fitted: `stretch` it, `crop` the middle, or `pad` with black.
        mean: Mean of each channel, of pixels from 0 to 1; auto: that of the training images.
        std: Standard deviation of each channel, likewise.
        augment: Amounts of random changes in training: `crop`, `flip`, `rotate`, `brightness`, `contrast`, `cutout`;
            `mixup`, `cutmix`, `mix_prob` mix each image with another one, and the targets become `shares`.

    Raises:
        ConfigError: A value is out of range.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1", "top_5_accuracy")
    target: Target = "class"
    inputs: Inputs = "images"
    script = ("images", "classes")
    shares_by = ("augment.mixup", "augment.cutmix")

    def __init__(
        self,
        *,
        size: Literal["auto"] | int | list[int],
        channels: Literal["auto"] | int,
        resize: Literal["stretch", "crop", "pad"],
        mean: Literal["auto"] | list[float],
        std: Literal["auto"] | list[float],
        augment: Mapping[str, float],
    ) -> None:
        self.images = Images(size, channels, resize, mean, std, augment)
        self.mixing = Mixing(augment)
        self.train_target: Target = "shares" if self.mixing else "class"
        self.label = Label()
        super().__init__("image_classification/1", ("image",), self.images, self.label)

    def extra_rows(self, draws: SampleRng) -> list[int]:
        """The row that each sample is mixed with; `collate` gets them behind the samples."""
        return self.mixing.partners(draws) if draws.training and self.mixing else []

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        further = self.extra_rows(draws)
        inputs = self.images.inputs(rows, draws.of([*draws.ids, *further]))
        count = len(draws.ids)
        if not further:
            return Batch(inputs, self.label.target(rows["label"]), count, tuple(draws.ids))
        pixels = inputs["pixel_values"]
        mixed, shares = self.mixing.mix(pixels[:count], pixels[count:], draws)
        classes = np.array(rows["label"], dtype=np.int64)
        target = class_shares(classes[:count], classes[count:], shares, len(self.label.classes.labels))
        return Batch({"pixel_values": mixed}, target, count, tuple(draws.ids))

    def info(self) -> TaskInfo:
        return replace(super().info(), train_target=self.train_target)

    def metrics(self) -> MetricCollection:
        """Accuracy and macro F1; of more than 5 classes also the share of targets among the 5 highest scores."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        count = len(self.label.classes.labels)
        metrics = super().metrics()
        if count <= _TOP:
            return metrics
        top = MulticlassAccuracy(count, top_k=_TOP, average="micro")
        # Sharing states would merge both accuracies for good where they are equal on the first batch.
        return MetricCollection({**dict(metrics.items()), f"top_{_TOP}_accuracy": top}, compute_groups=False)
