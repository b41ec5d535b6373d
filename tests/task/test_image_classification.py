from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from tests.support.jobs import TINY, assert_resumes, assert_same_end
from tests.support.predictions import predict
from tests.support.sources import write_idx
from trainer.cli import main
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.errors import ConfigError, DataError, RowError
from trainer.evaluate import metric_directions
from trainer.export.cases import forward_of, proof_cases, traced_inputs
from trainer.model.convnet import ConvNet
from trainer.protocols import Batching
from trainer.sample_rng import SampleRng
from trainer.task.image_classification import ImageClassification

LABELS = ["cat", "dog", "cat", "owl", "cat"]


def png(seed: int) -> dict[str, Any]:
    data = BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(8, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": None}


def dataset(labels: list[str] = LABELS) -> Dataset:
    return Dataset.from_dict({"image": [png(seed) for seed in range(len(labels))], "label": labels})


def task(**changes: Any) -> ImageClassification:
    shape: dict[str, Any] = {"size": "auto", "channels": "auto", "resize": "stretch", "mean": "auto", "std": "auto"}
    return ImageClassification(**(shape | {"augment": {}} | changes))


def fitted(labels: list[str] = LABELS, **changes: Any) -> ImageClassification:
    made = task(**changes)
    made.fit(dataset(labels))
    return made


def batches(
    made: ImageClassification, batching: Batching = "padded", *, training: bool = False, as_bytes: bool = False
) -> Batches:
    rows = dataset()
    encoded = rows.map(made.encode, batched=True, batch_size=2, remove_columns=rows.column_names)
    return Batches(encoded, made, batching, seed=0, training=training, as_bytes=as_bytes)


def test_batches_are_equal_in_every_layout() -> None:
    made = fitted()
    for batching in get_args(Batching):
        batch = batches(made, batching)[BatchIndices(0, (3, 0))]
        assert batch.target is not None
        assert batch.target.tolist() == [2, 0]
        assert (batch.num_samples, batch.ids) == (2, (3, 0))
        shades = [np.asarray(Image.open(BytesIO(png(seed)["bytes"]))) for seed in (3, 0)]
        expected = (np.stack(shades)[:, None] / 255 - made.images.mean) / made.images.std
        np.testing.assert_allclose(batch.inputs["pixel_values"].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_info_describes_the_training_split() -> None:
    made = fitted()

    assert made.info().arguments() == {
        "image_channels": 1,
        "image_size": (8, 6),
        "num_outputs": 3,
        "class_counts": [3, 1, 1],
        "class_names": ["cat", "dog", "owl"],
        "num_train": 5,
        "train_target": "class",
    }
    assert fitted(augment={"cutmix": 1.0}).info().train_target == "shares"
    assert made.lengths(dataset()) is None


def test_augmentation_depends_on_the_sample_and_skips_evaluation() -> None:
    made = fitted(augment={"crop": 2, "flip": 0.5, "rotate": 20.0, "cutout": 3})
    trained, evaluated, plain = batches(made, training=True), batches(made), batches(fitted(), training=True)

    def pixels(of: Batches, epoch: int, *ids: int) -> torch.Tensor:
        return of[BatchIndices(epoch, ids)].inputs["pixel_values"]

    together = pixels(trained, 1, 0, 1, 2, 3, 4)
    assert torch.equal(together[3], pixels(trained, 1, 4, 3)[1])
    assert not torch.equal(together, pixels(trained, 2, 0, 1, 2, 3, 4))
    assert torch.equal(pixels(evaluated, 1, 0, 1), pixels(plain, 0, 0, 1))
    assert not torch.equal(together[:2], pixels(plain, 0, 0, 1))


def test_mixing_depends_on_the_sample_and_skips_evaluation() -> None:
    amounts = {"crop": 2, "flip": 0.5, "mixup": 0.5, "cutmix": 0.5}
    made = fitted(augment=amounts)
    trained, evaluated = batches(made, training=True), batches(made)
    together = trained[BatchIndices(1, (0, 1, 2, 3, 4))]
    separate = trained[BatchIndices(1, (4, 3))]

    assert together.target is not None
    assert separate.target is not None
    assert (together.num_samples, together.ids) == (5, (0, 1, 2, 3, 4))
    assert together.inputs["pixel_values"].shape == (5, 1, 8, 6)
    assert torch.equal(together.inputs["pixel_values"][3], separate.inputs["pixel_values"][1])
    assert torch.equal(together.target[3], separate.target[1])
    assert torch.equal(evaluated[BatchIndices(1, (0, 3))].target, torch.tensor([0, 2]))


@pytest.mark.parametrize("augment", [{}, {"crop": 2, "flip": 0.5}, {"mixup": 0.5}])
@pytest.mark.parametrize("training", [True, False])
def test_pixels_that_are_standardized_later_have_the_same_bits(augment: dict[str, float], training: bool) -> None:
    made = fitted(augment=augment, mean=[0.4137], std=[0.2913], channels=1)
    indices = BatchIndices(1, (4, 0, 3))
    expected = batches(made, training=training)[indices]
    on_host = batches(made, training=training, as_bytes=True)[indices]
    assert (on_host.scale is None) == (training and "mixup" in augment)
    if on_host.scale is not None:
        assert on_host.inputs["pixel_values"].dtype == torch.uint8
    moved = on_host.to(torch.device("cpu"))

    pixels = moved.inputs["pixel_values"]
    assert torch.equal(pixels, expected.inputs["pixel_values"])
    assert pixels.stride() == expected.inputs["pixel_values"].stride()
    assert moved.scale is None
    assert torch.equal(moved.target, expected.target)  # type: ignore[arg-type]
    assert (moved.num_samples, moved.ids, moved.piece) == (expected.num_samples, expected.ids, expected.piece)


def test_runs_that_standardize_images_later_have_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(tmp_path / "idx", 60)
    job = [option for option in TINY if not option.startswith(("model.", "task."))]
    job += ["task=image_classification", "model=convnet", "data=idx", f"data.folder={tmp_path}/idx"]
    job += [f"data.cache_dir={tmp_path}/cache", "task.augment.flip=0.5", "checkpoint.every=4", "checkpoint.keep=9"]
    runs = {name: tmp_path / name for name in ("now", "later")}
    diverged = {name: tmp_path / f"{name}-diverged" for name in runs}
    for name in runs:
        if name == "later":
            monkeypatch.setattr("trainer.builders.data._leaves_images_to", lambda device: True)
        assert main(["train", *job, f"run.dir={runs[name]}", "train.duration=12", "loader.workers=1"]) == 0
        lost = ["optimizer.lr=1e30", "scheduler=constant", "train.max_grad_norm=null"]
        assert main(["train", *job, f"run.dir={diverged[name]}", *lost]) == 5
    assert_same_end(runs["later"], runs["now"], 0)
    assert_resumes(runs["later"], 4)
    (now, later) = (next(diverged[name].glob("diverged/*/batch.safetensors")).read_bytes() for name in runs)
    assert now == later


def test_mixup_combines_two_augmented_images() -> None:
    changes = {"crop": 2, "flip": 0.5}
    made, plain = fitted(augment=changes | {"mixup": 1.0}), fitted(augment=changes)
    ids = (0, 1, 2, 3, 4)
    batch, own = (batches(task, training=True)[BatchIndices(3, ids)] for task in (made, plain))
    draws = SampleRng(0, 3, ids, training=True, num_rows=5)
    partners = made.extra_rows(draws)
    pixels = own.inputs["pixel_values"]

    assert batch.target is not None
    assert partners != list(ids)
    for position, partner in enumerate(partners):
        mine, other = made.class_target.encode([LABELS[position], LABELS[partner]])
        share = batch.target[position, mine] if mine != other else None
        mixed = batch.inputs["pixel_values"][position]
        assert batch.target[position].sum().item() == pytest.approx(1.0, abs=1e-6)
        if share is not None:
            assert batch.target[position, other].item() == pytest.approx(1 - share.item(), abs=1e-6)
            expected = share * pixels[position] + (1 - share) * pixels[partner]
            torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)


def test_unusable_rows_are_errors() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        task().fit(dataset(["cat"] * 3))
    with pytest.raises(RowError, match=r"label: does not occur in training, got 'dgo'\. Did you mean dog") as caught:
        fitted().encode({"image": [png(0), png(1)], "label": ["cat", "dgo"]})
    assert (caught.value.position, caught.value.role) == (1, "label")
    with pytest.raises(RowError, match="image: cannot be decoded") as caught:
        fitted().encode({"image": [{"bytes": b"", "path": None}], "label": ["cat"]})
    assert (caught.value.position, caught.value.role) == (0, "image")


def test_metrics_of_few_classes_and_predictions() -> None:
    made = fitted()
    metrics = made.metrics()
    metrics.update(torch.tensor([[2.0, 1, 0], [2, 1, 0], [1, 2, 0]]), torch.tensor([0, 1, 1]))

    assert set(metrics) == {"accuracy", "macro_f1"}
    assert metrics.compute()["accuracy"].item() == pytest.approx(2 / 3)
    assert predict(made, torch.tensor([[0.0, 50.0, 0.0]])) == [{"label": "dog", "probability": 1.0}]
    assert made.monitor in metrics


def test_top_5_accuracy_of_many_classes() -> None:
    made = fitted([str(number) for number in range(8)])
    metrics = made.metrics()
    # All right at once first: the metrics must not be taken for one another for the rest of the split.
    metrics.update(torch.eye(8), torch.arange(8))
    metrics.update(torch.arange(8.0).repeat(8, 1), torch.arange(8))
    values = {name: value.item() for name, value in metrics.compute().items()}

    assert values["accuracy"] == 9 / 16
    assert values["top_5_accuracy"] == 13 / 16
    assert metric_directions(metrics) == {"loss": False, "accuracy": True, "macro_f1": True, "top_5_accuracy": True}


def test_export_cases_vary_only_the_batch_size() -> None:
    made = fitted()
    facts = {name: getattr(made.info(), name) for name in ("num_outputs", "image_channels", "image_size")}
    model = ConvNet(**facts, channels=(2, 3), hidden=[4])
    with torch.no_grad():
        cases = proof_cases(made, forward_of(model))

    assert traced_inputs(made)["pixel_values"].shape == (2, 1, 8, 6)
    assert [case.sizes for case in cases] == [{"batch": 1}, {"batch": 3}, {"batch": 8}]
    assert made.axis_limits() == {}


def test_invalid_settings_are_errors() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"size": 0}, "size"),
        ({"size": [4]}, "size"),
        ({"mean": [0.5]}, "mean"),
        ({"channels": 3, "mean": [0.5]}, "mean"),
        ({"channels": 3, "std": [0.5]}, "std"),
        ({"channels": 1, "std": [0.0]}, "std"),
        ({"augment": {"crop": 1.5}}, "augment.crop"),
        ({"augment": {"crop": float("inf")}}, "augment.crop"),
        ({"augment": {"flip": 1.1}}, "augment.flip"),
        ({"augment": {"rotate": -1}}, "augment.rotate"),
        ({"augment": {"brightness": 1.5}}, "augment.brightness"),
        ({"augment": {"contrast": float("nan")}}, "augment.contrast"),
        ({"augment": {"cutout": -1}}, "augment.cutout"),
        ({"augment": {"mixup": -1.0}}, "augment.mixup"),
        ({"augment": {"cutmix": float("inf")}}, "augment.cutmix"),
        ({"augment": {"mix_prob": 1.5}}, "augment.mix_prob"),
        ({"augment": {"filp": 0.5}}, "augment.filp"),
    ]
    for change, key in cases:
        with pytest.raises(ConfigError, match=rf"^{key}: ") as caught:
            task(**change)
        assert len(caught.value.messages) == 1, change


def test_valid_amounts_are_accepted() -> None:
    task(augment={"crop": 2, "flip": 1, "rotate": 180.0, "brightness": 1, "contrast": 0, "cutout": 3.0, "mixup": 32.0})
    task(augment={"cutmix": 0, "mix_prob": 1.0})


def test_all_invalid_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        task(size=0, channels=1, std=[-1.0], augment={"flip": 2, "mixup": -1})
    assert len(caught.value.messages) == 4
