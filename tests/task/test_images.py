import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from trainer.errors import DataError, RowError
from trainer.sample_rng import SampleRng
from trainer.task.images import Images, decode_image

OPTIONS: dict[str, Any] = {
    "size": "auto",
    "channels": "auto",
    "resize": "stretch",
    "mean": "auto",
    "std": "auto",
    "augment": {},
}


def make_images(**changes: Any) -> Images:
    return Images(**(OPTIONS | changes))


def stored(image: Image.Image, file_format: str = "PNG", **options: Any) -> dict[str, Any]:
    data = BytesIO()
    image.save(data, format=file_format, **options)
    return {"bytes": data.getvalue(), "path": None}


def gray_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width), dtype=np.uint8)


def color_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def split(*arrays: np.ndarray) -> Dataset:
    return Dataset.from_dict({"image": [stored(Image.fromarray(array)) for array in arrays]})


def fitted(*arrays: np.ndarray, **changes: Any) -> Images:
    made = make_images(**changes)
    made.fit(split(*arrays), ("image",))
    return made


def pixels_of(made: Images, *arrays: np.ndarray) -> list[np.ndarray]:
    encoded = made.encode(split(*arrays)["image"])
    return [np.frombuffer(data, np.uint8).reshape(*made.size, made.channels) for data in encoded["pixels"]]


def test_pixels_equal_the_image() -> None:
    shades, colours = gray_pixels(4, 6), color_pixels(5, 3)

    np.testing.assert_array_equal(pixels_of(fitted(shades), shades)[0][:, :, 0], shades)
    np.testing.assert_array_equal(pixels_of(fitted(colours), colours)[0], colours)


def test_auto_settings_are_learned_from_the_training_images() -> None:
    shades = [gray_pixels(4, 6, seed) for seed in range(3)]
    made = fitted(*shades)

    assert made.info_fields() == {"image_channels": 1, "image_size": (4, 6)}
    assert made.mean == pytest.approx([np.mean(shades) / 255], rel=1e-12)
    assert made.std == pytest.approx([np.std(shades) / 255], rel=1e-12)
    mixed = fitted(gray_pixels(4, 6), color_pixels(4, 6))
    assert mixed.channels == 3
    both = np.stack([np.repeat(gray_pixels(4, 6)[:, :, None], 3, axis=2), color_pixels(4, 6)]) / 255
    assert mixed.mean == pytest.approx(both.mean(axis=(0, 1, 2)), rel=1e-12)
    assert mixed.std == pytest.approx(both.std(axis=(0, 1, 2)), rel=1e-12)


def test_fixed_settings_are_kept() -> None:
    made = fitted(gray_pixels(4, 6), size=[2, 3], channels=3, mean=[0.1, 0.2, 0.3], std=[1, 2, 3])

    assert made.info_fields() == {"image_channels": 3, "image_size": (2, 3)}
    assert (made.mean, made.std) == ([0.1, 0.2, 0.3], [1, 2, 3])
    half = fitted(gray_pixels(4, 6), size=8, channels=1, mean=[0.5])
    assert (half.size, half.mean) == ((8, 8), [0.5])
    assert half.std != []


def test_moments_are_of_resized_images() -> None:
    shades = gray_pixels(9, 9)
    made = fitted(shades, size=3)
    small = np.asarray(Image.fromarray(shades).resize((3, 3), Image.Resampling.BILINEAR))

    assert made.mean == pytest.approx([small.mean() / 255], rel=1e-12)


def test_constant_channel_is_not_divided_by_zero() -> None:
    made = fitted(np.full((4, 4), 7, dtype=np.uint8))

    assert made.std == [1.0]
    inputs = made.pixel_inputs(made.encode(split(np.full((4, 4), 7, np.uint8))["image"]), SampleRng(0, 0, (0,)))
    torch.testing.assert_close(inputs["pixel_values"], torch.zeros(1, 1, 4, 4), rtol=0, atol=1e-7)


def test_moments_use_a_limited_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.task.images._MAX_SAMPLED", 3)
    shades = [np.full((2, 2), value, dtype=np.uint8) for value in (0, 10, 20, 30, 40)]

    assert fitted(*shades).mean == pytest.approx([20 / 255])
    assert fitted(*shades).std == pytest.approx([np.std([0, 20, 40]) / 255])


def test_images_of_another_size_are_resized() -> None:
    cases: list[str] = ["stretch", "crop", "pad"]
    for resize in cases:
        wide = np.zeros((4, 8, 3), dtype=np.uint8)
        wide[:, :4] = 255
        made = fitted(wide, size=4, resize=resize)
        (pixels,) = pixels_of(made, wide)
        left, right = pixels[:, 0], pixels[:, -1]

        if resize == "pad":
            assert (pixels[0] == 0).all()
            assert (pixels[3] == 0).all()
            assert (pixels[1:3, 0] == 255).all()
        else:
            assert (left == 255).all()
            assert (right == 0).all()
        edge = pixels[2, :, 0].astype(int)
        assert (np.diff(edge) <= 0).all()
        assert made.encode(split(wide)["image"])["resized"] == [True]
        assert made.encode(split(wide[:, :4])["image"])["resized"] == [False]


def test_crop_takes_the_middle() -> None:
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 200

    assert (pixels_of(fitted(wide, size=4, resize="crop"), wide)[0] == 200).all()


def test_exif_orientation_is_applied() -> None:
    shades = np.zeros((16, 32), dtype=np.uint8)
    shades[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned = decode_image(stored(Image.fromarray(shades), "JPEG", exif=exif, quality=100))

    assert turned.size == (16, 32)
    np.testing.assert_allclose(np.asarray(turned), np.rot90(shades, -1), atol=3)


def test_pixel_formats_become_8_bit_gray_or_color() -> None:
    sixteen_bits = Image.fromarray(np.full((2, 2), 0x1234, dtype=np.uint16))
    cases: list[tuple[Image.Image, str, str, Any]] = [
        (Image.new("1", (2, 2), 1), "PNG", "L", 255),
        (Image.new("LA", (2, 2), (9, 255)), "PNG", "L", 9),
        (Image.new("LA", (2, 2), (9, 0)), "PNG", "L", 255),
        (Image.new("RGBA", (2, 2), (9, 9, 9, 0)), "PNG", "RGB", 255),
        (Image.new("RGBA", (2, 2), (9, 8, 7, 255)), "PNG", "RGB", (9, 8, 7)),
        (Image.new("P", (2, 2), 0), "GIF", "RGB", 0),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "TIFF", "RGB", 255),
        (sixteen_bits, "PNG", "L", 0x12),
        (sixteen_bits, "PPM", "L", 0x12),
        (sixteen_bits, "TIFF", "L", 0x12),
    ]
    for image, file_format, mode, value in cases:
        decoded = decode_image(stored(image, file_format))
        assert decoded.mode == mode, (image.mode, file_format)
        assert (np.asarray(decoded) == value).all(), (image.mode, file_format)


def test_paths_are_read(tmp_path: Path) -> None:
    Image.fromarray(gray_pixels(4, 4)).save(tmp_path / "a.png")
    made = fitted(gray_pixels(4, 4))
    (data,) = made.encode([{"bytes": None, "path": str(tmp_path / "a.png")}])["pixels"]

    assert data == gray_pixels(4, 4).tobytes()


def test_undecodable_images_are_row_errors() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bytes": b"no image", "path": None}, r"image: cannot be decoded \(it is none of BMP, .* got '8 bytes'"),
        ({"bytes": None, "path": "nowhere/cat.png"}, r"cannot be decoded \(.*No such file.* got 'nowhere/cat\.png'"),
        ({"bytes": None, "path": None}, r"image: cannot be decoded \(neither bytes nor path\), got null"),
        (stored(Image.fromarray(np.zeros((2, 2), dtype=np.int32)), "TIFF"), "32 bits per pixel have no known range"),
        (stored(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"), "32 bits per pixel have no known range"),
    ]
    for image, message in cases:
        made = fitted(gray_pixels(4, 4))
        good = stored(Image.fromarray(gray_pixels(4, 4)))

        with pytest.raises(RowError, match=message) as caught:
            made.encode([good, image])
        assert (caught.value.position, caught.value.role) == (1, "image")


def test_truncated_file_is_a_row_error() -> None:
    whole = stored(Image.fromarray(color_pixels(32, 32)))["bytes"]

    with pytest.raises(RowError, match="cannot be decoded"):
        fitted(color_pixels(32, 32)).encode([{"bytes": whole[: len(whole) // 2], "path": None}])


def test_fit_skips_images_that_encoding_rejects() -> None:
    made = make_images()
    good = stored(Image.fromarray(gray_pixels(4, 4)))
    bad = {"bytes": b"no image", "path": None}
    made.fit(Dataset.from_dict({"image": [bad, good]}), ("image",))

    assert made.size == (4, 4)
    for options in ({}, {"size": 4, "channels": 1}):
        with pytest.raises(DataError, match="no image of the training split can be decoded"):
            make_images(**options).fit(Dataset.from_dict({"image": [bad, bad]}), ("image",))


def test_several_sizes_need_an_explicit_size() -> None:
    with pytest.raises(DataError, match=r"task\.size: cannot be auto .* 4 x 6 and 5 x 5, got 'auto'") as caught:
        fitted(gray_pixels(4, 6), gray_pixels(5, 5))
    assert "Set it, such as task.size=224" in str(caught.value)
    assert fitted(gray_pixels(4, 6), gray_pixels(5, 5), size=4).size == (4, 4)


def test_inputs_are_standardized() -> None:
    made = fitted(color_pixels(4, 6), mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3], channels=3)
    rows = made.encode(split(color_pixels(4, 6, 1), color_pixels(4, 6, 2))["image"])
    values = made.pixel_inputs(rows, SampleRng(0, 0, (0, 1)))["pixel_values"]
    expected = (np.stack([color_pixels(4, 6, 1), color_pixels(4, 6, 2)]) / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]

    assert values.dtype == torch.float32
    assert values.is_contiguous()
    np.testing.assert_allclose(values.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


def test_augmentation_is_for_training_only_and_depends_on_the_sample() -> None:
    made = fitted(color_pixels(8, 8), augment={"crop": 2, "flip": 0.5})
    rows = made.encode(split(*(color_pixels(8, 8, seed) for seed in range(4)))["image"])
    plain = made.pixel_inputs(rows, SampleRng(0, 0, (4, 5, 6, 7)))["pixel_values"]
    trained = made.pixel_inputs(rows, SampleRng(0, 0, (4, 5, 6, 7), training=True))["pixel_values"]
    single = made.pixel_inputs({"pixels": rows["pixels"][2:3]}, SampleRng(0, 0, (6,), training=True))["pixel_values"]
    later = made.pixel_inputs(rows, SampleRng(0, 1, (4, 5, 6, 7), training=True))["pixel_values"]

    assert torch.equal(plain, inputs_without_augmentation(made, rows))
    assert not torch.equal(trained, plain)
    assert torch.equal(single[0], trained[2])
    assert not torch.equal(later, trained)


def inputs_without_augmentation(made: Images, rows: dict[str, list[Any]]) -> torch.Tensor:
    other = make_images()
    other.load_state_dict(made.state_dict())
    return other.pixel_inputs(rows, SampleRng(0, 0, (4, 5, 6, 7), training=True))["pixel_values"]


def test_examples_and_artifact_file() -> None:
    made = fitted(color_pixels(4, 6))
    inputs = made.example({"batch": 3}, np.random.default_rng(0))

    assert inputs["pixel_values"].shape == (3, 3, 4, 6)
    assert made.axes() == {"pixel_values": {0: "batch"}}
    assert json.loads(made.artifact_files()["image.json"]) == {
        **made.state_dict()["images"],
        "resize": "stretch",
        "interpolation": "bilinear",
    }


def test_state_is_json_and_gives_the_same_pixels() -> None:
    made, copy = fitted(color_pixels(4, 6)), make_images()
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))

    assert copy.info_fields() == made.info_fields()
    np.testing.assert_array_equal(pixels_of(copy, color_pixels(4, 6, 1)), pixels_of(made, color_pixels(4, 6, 1)))
    assert copy.state_dict() == made.state_dict()


def test_shapes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = fitted(color_pixels(4, 6), color_pixels(8, 8), size=[4, 6])
    encoded = Dataset.from_dict(made.encode(split(color_pixels(4, 6), color_pixels(8, 8))["image"]))
    made.check({"train": encoded})

    assert "train: 2 images of 4 x 6 pixels, color, 50.0% of them resized (stretch)" in caplog.text
