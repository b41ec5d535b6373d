import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import nn

from tests.support.exported_models import IMAGE_AXES, assert_exports_equal, assert_gradients_reach_everything, images
from tests.support.pretrained_folders import reference, save
from trainer.errors import ConfigError
from trainer.model import pretrained_folder
from trainer.model.pretrained_image import PretrainedImage
from trainer.model.pretrained_loading import quiet
from trainer.optimizer.parameter_groups import layer_indices
from trainer.task.image_classification import ImageClassification

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    | {"image_size": 16, "patch_size": 4, "num_channels": 3},
    "resnet": {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    | {"layer_type": "basic"},
}
KEYS: dict[str, Any] = {
    "config": {},
    "pooling": "mean",
    "attention": None,
    "pretrained": True,
}
FACTS: dict[str, Any] = {"num_outputs": 5, "image_channels": 3, "image_size": (16, 16)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny classifier of a family."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            from transformers import AutoConfig, AutoModelForImageClassification

            torch.manual_seed(0)
            model = AutoModelForImageClassification.from_config(AutoConfig.for_model(name, **CONFIGS[name]))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
            made[name] = tmp_path_factory.mktemp(name)
            with quiet():
                model.save_pretrained(made[name])
        return made[name]

    return find


def model_of(path: Path, **changes: Any) -> PretrainedImage:
    torch.manual_seed(0)
    return PretrainedImage(**(FACTS | KEYS | {"path": str(path)} | changes)).eval()


def test_matches_the_classifier_of_transformers(folder: Callable[[str], Path]) -> None:
    for name in CONFIGS:
        from transformers import AutoModelForImageClassification

        own = reference(AutoModelForImageClassification, folder(name), num_labels=2)
        model = model_of(folder(name), num_outputs=2, pooling="cls" if name == "vit" else "mean")
        head = own.classifier if name == "vit" else own.classifier[-1]
        model.head.load_state_dict(head.state_dict())
        inputs = images(3, 3, 16, 16)

        torch.testing.assert_close(model(**inputs), own(**inputs).logits, rtol=0, atol=1e-5)


def test_pooling(folder: Callable[[str], Path]) -> None:
    for name in CONFIGS:
        from transformers import AutoModel

        inputs = images(3, 3, 16, 16)
        hidden = reference(AutoModel, folder(name))(**inputs).last_hidden_state
        axes = 1 if hidden.ndim == 3 else (2, 3)
        for pooling, expected in (("mean", hidden.mean(dim=axes)), ("max", hidden.amax(dim=axes))):
            model = model_of(folder(name), num_outputs=None, pooling=pooling)
            torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-5)


def test_a_model_is_rebuilt_without_its_folder(folder: Callable[[str], Path], tmp_path: Path) -> None:
    for name in CONFIGS:
        model = model_of(folder(name))
        again = model_of(tmp_path / "nowhere", architecture=json.loads(json.dumps(model.architecture)))
        again.load_state_dict(model.state_dict())

        assert again.architecture == model.architecture
        assert torch.equal(again(**images(2, 3, 16, 16)), model(**images(2, 3, 16, 16)))


def test_gradients_reach_every_parameter(folder: Callable[[str], Path]) -> None:
    for name in CONFIGS:
        assert_gradients_reach_everything(model_of(folder(name)), images(8, 3, 16, 16))


def test_optimizer_layers_are_the_models_layers(folder: Callable[[str], Path]) -> None:
    layers = layer_indices(nn.ModuleDict({"model": model_of(folder("vit"))}))

    assert layers["model.base.embeddings.cls_token"] == 0
    assert {layers[f"model.{name}"] for name in ("base.layernorm.weight", "head.weight")} == {3}
    assert set(layers.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_outputs_match(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    batches = [images(count, 3, 16, 16, count) for count in (2, 1, 5)]
    assert_exports_equal(model_of(folder(name)), batches[0], batches[1:], IMAGE_AXES, {}, tmp_path)


def test_convolutional_models_take_other_image_sizes(folder: Callable[[str], Path]) -> None:
    assert model_of(folder("resnet"), image_size=(40, 24))(**images(2, 3, 40, 24)).shape == (2, 5)


def test_images_that_do_not_fit_are_rejected(folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError) as error:
        model_of(folder("vit"), image_channels=1, image_size=(28, 28))
    channels, size = error.value.messages
    assert channels.startswith("path: ")
    assert channels.endswith("Set task.channels=3.")
    assert "16 x 16 pixels, the task's images have 28 x 28. Set task.size=[16,16]." in size
    with pytest.raises(ConfigError, match=r"^pooling: a resnet has no class token, got 'cls'"):
        model_of(folder("resnet"), pooling="cls")
    with pytest.raises(ConfigError, match=r"^config: .*eager"):
        model_of(folder("resnet"), attention="sdpa")


def test_a_text_model_is_rejected(tmp_path: Path) -> None:
    save("bert", tmp_path)
    with pytest.raises(ConfigError, match=r"^path: is a bert, .*model=pretrained "):
        model_of(tmp_path)


def test_a_config_that_cannot_be_rebuilt_is_rejected(folder: Callable[[str], Path]) -> None:
    # The folder's config still says that the features have two stages.
    with pytest.raises(ConfigError, match=r"^config: a checkpoint .*stage"):
        model_of(folder("resnet"), config={"depths": [1]})


def test_config_changes_are_applied(folder: Callable[[str], Path]) -> None:
    model = model_of(
        folder("vit"),
        config={"image_size": 32, "num_channels": 1},
        pretrained=False,
        image_size=(32, 32),
        image_channels=1,
    )

    assert model(**images(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(ConfigError, match="Did you mean hidden_size"):
        model_of(folder("vit"), config={"hiden_size": 2})
    with pytest.raises(ConfigError, match="path: has weights of other shapes"):
        model_of(folder("vit"), config={"image_size": 32}, image_size=(32, 32))


def pictures(mode: str, *sizes: tuple[int, int]) -> list[Image.Image]:
    random = np.random.default_rng(0)
    shape = () if mode == "L" else (3,)
    return [Image.fromarray(random.integers(256, size=(*size, *shape), dtype=np.uint8)) for size in sizes]


def rows_of(images: list[Image.Image]) -> dict[str, Any]:
    files = [BytesIO() for _ in images]
    for image, file in zip(images, files, strict=True):
        image.save(file, format="PNG")
    return {"image": [{"bytes": file.getvalue(), "path": None} for file in files]}


def test_saved_image_processor_matches_the_task(folder: Callable[[str], Path], tmp_path: Path) -> None:
    for name, channels in [("vit", 3), ("vit", 1), ("resnet", 3)]:
        from transformers import AutoModelForImageClassification, ViTImageProcessorPil

        mode = "L" if channels == 1 else "RGB"
        task = ImageClassification(size=16, channels="auto", resize="stretch", mean="auto", std="auto", augment={})
        seen = rows_of(pictures(mode, (16, 16), (24, 20))) | {"label": ["cat", "dog"]}
        task.fit(Dataset.from_dict(seen))
        changes = {
            "config": {"num_channels": channels},
            "pretrained": False,
            "pooling": "cls" if name == "vit" else "mean",
        }
        model = model_of(folder(name), num_outputs=2, **changes, **task.images.info_fields())
        with torch.no_grad():
            about = pretrained_folder.save(
                model,
                tmp_path / f"{name}-{channels}",
                images(2, channels, 16, 16),
                task.artifact_files(),
                max_length=None,
                half=False,
            )
        assert about["class"].endswith("ForImageClassification")

        own = reference(AutoModelForImageClassification, tmp_path / f"{name}-{channels}")
        read = ViTImageProcessorPil.from_pretrained(tmp_path / f"{name}-{channels}")
        for size in ((16, 16), (30, 21)):  # the right size, and a size that is resized
            shown = pictures(mode, size)
            expected = task.model_inputs(task.encode_inputs(rows_of(shown)), "padded")
            inputs = read(shown, return_tensors="pt")
            assert inputs.keys() == expected.keys()
            torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
            torch.testing.assert_close(own(**inputs).logits, model(**expected), rtol=0, atol=1e-5)
        assert own.config.id2label == {0: "cat", 1: "dog"}


def test_saved_image_processor_does_not_resize_if_the_task_crops(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    task = ImageClassification(size=16, channels=3, resize="crop", mean=[0.5] * 3, std=[0.2] * 3, augment={})
    with torch.no_grad():
        pretrained_folder.save(
            model_of(folder("vit")),
            tmp_path,
            images(2, 3, 16, 16),
            task.images.artifact_files(),
            max_length=None,
            half=False,
        )
    # AutoImageProcessor reads this name, but needs torchvision in the lowest versions of transformers.
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "ViTImageProcessor"
    )
    read = ViTImageProcessorPil.from_pretrained(tmp_path)
    assert read(pictures("RGB", (30, 21)), return_tensors="pt")["pixel_values"].shape == (1, 3, 30, 21)
