"""Images as encoded bytes."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from trainer.data.cells import IMAGE_SUFFIXES, encode_png, image_digest


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_a_png_has_every_pixel(pixels: np.ndarray) -> None:
    image = encode_png(pixels)

    with Image.open(BytesIO(image["bytes"])) as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(decoded), pixels)
    assert image["path"] is None


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")

    digest = image_digest({"bytes": None, "path": str(tmp_path / "a.png")})

    assert digest == image_digest({"bytes": b"a", "path": None}) != image_digest({"bytes": b"", "path": None})
    with pytest.raises(FileNotFoundError):
        image_digest({"bytes": None, "path": str(tmp_path / "b.png")})


def test_pillow_reads_what_is_taken_for_an_image() -> None:
    Image.init()

    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} >= {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"}
