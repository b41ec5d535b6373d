from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from tests.support.exported_models import (
    FEATURE_AXES,
    IMAGE_AXES,
    TOKEN_AXES,
    assert_exports_equal,
    assert_gradients_reach_everything,
    assert_onnx_equal,
    features,
    images,
    parameter_count,
)
from tests.support.token_batches import packed
from trainer.errors import ConfigError
from trainer.model.linear import Linear
from trainer.task.packing import padded_inputs


def linear(num_outputs: int | None = 5, **facts: Any) -> Linear:
    torch.manual_seed(0)
    return Linear(num_outputs, **facts)


def samples(count: int, vocab_size: int = 50, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(vocab_size, size=length) for length in random.integers(1, 31, size=count)]


def frequencies(texts: list[np.ndarray], vocab_size: int) -> Tensor:
    """The relative frequency of each word in each text."""
    counted = [[float((text == word).sum()) / len(text) for word in range(vocab_size)] for text in texts]
    return torch.tensor(counted, dtype=torch.float64)


def minimize(model: Linear, inputs: dict[str, Tensor], target: Tensor, penalty: float) -> None:
    """Train to convergence on the summed loss plus penalty / 2 * |weights|^2, without a penalty on the bias."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        output = model(**inputs)
        if target.is_floating_point():
            loss = F.mse_loss(output, target, reduction="sum") / 2
        else:
            loss = F.cross_entropy(output, target, reduction="sum")
        loss = loss + penalty / 2 * model.head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


class TestRegression:
    def test_matches_logistic_regression_of_sklearn(self) -> None:
        penalty = 0.1
        data = load_iris()
        scaled = StandardScaler().fit_transform(data.data)
        model = linear(3, num_features=4).double()
        minimize(model, {"features": torch.tensor(scaled)}, torch.tensor(data.target), penalty)
        reference = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(scaled, data.target)
        bias = model.head.bias.detach().numpy()

        np.testing.assert_allclose(model.head.weight.detach().numpy(), reference.coef_, rtol=0, atol=1e-5)
        # Softmax does not change if all biases are shifted, so their mean is arbitrary.
        expected = reference.intercept_ - reference.intercept_.mean()
        np.testing.assert_allclose(bias - bias.mean(), expected, rtol=0, atol=1e-5)

    def test_matches_binary_logistic_regression_of_sklearn(self) -> None:
        data = load_breast_cancer()
        scaled = StandardScaler().fit_transform(data.data)
        model = linear(2, num_features=30).double()
        minimize(model, {"features": torch.tensor(scaled)}, torch.tensor(data.target), 2.0)
        # The classes have weights w and -w, the margin has m = 2 w, so |w|^2 + |-w|^2 = |m|^2 / 2.
        reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(scaled, data.target)
        weight = model.head.weight.detach().numpy()

        np.testing.assert_allclose(weight[1] - weight[0], reference.coef_[0], rtol=0, atol=1e-4)

    def test_matches_logistic_regression_of_sklearn_on_pixels(self) -> None:
        data = load_digits()
        pixels, classes = data.images[:300] / 16, data.target[:300]
        model = linear(10, image_channels=1, image_size=(8, 8)).double()
        minimize(model, {"pixel_values": torch.tensor(pixels).unsqueeze(1)}, torch.tensor(classes), 1.0)
        reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(pixels.reshape(300, 64), classes)

        np.testing.assert_allclose(model.head.weight.detach().numpy(), reference.coef_, rtol=0, atol=1e-4)

    def test_matches_logistic_regression_of_sklearn_on_bags_of_words(self) -> None:
        texts = samples(60, vocab_size=12)
        classes = np.array([int(text[0]) % 3 for text in texts])
        model = linear(3, vocab_size=12).double()
        minimize(model, packed(texts), torch.tensor(classes), 0.1)
        reference = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000)
        reference.fit(frequencies(texts, 12).numpy(), classes)

        np.testing.assert_allclose(model.head.weight.detach().numpy(), reference.coef_, rtol=0, atol=1e-5)

    def test_matches_linear_regression_of_sklearn(self) -> None:
        for penalty in [0.0, 1.0]:
            data = load_diabetes()
            scaled, values = StandardScaler().fit_transform(data.data), data.target[:, None] / 100
            model = linear(1, num_features=10).double()
            minimize(model, {"features": torch.tensor(scaled)}, torch.tensor(values), penalty)
            reference = (Ridge(alpha=penalty) if penalty else LinearRegression()).fit(scaled, values)

            np.testing.assert_allclose(
                model.head.weight.detach().numpy(), np.reshape(reference.coef_, (1, -1)), rtol=0, atol=1e-6
            )
            np.testing.assert_allclose(model.head.bias.detach().numpy(), reference.intercept_, rtol=0, atol=1e-6)


class TestBagsOfWords:
    def test_both_layouts_match_the_layer_on_frequencies(self) -> None:
        count = 33
        model, texts = linear(vocab_size=50), samples(count)
        expected = F.linear(frequencies(texts, 50).float(), model.head.weight, model.head.bias)
        in_rows = model(**packed(texts))
        padded = model(**padded_inputs(texts, pad_id=0, width=31))

        assert in_rows.shape == (count, 5)
        torch.testing.assert_close(in_rows, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(padded, expected, rtol=0, atol=1e-6)

    def test_gradients_of_both_layouts_match_the_layer_on_frequencies(self) -> None:
        model, texts = linear(vocab_size=50).double(), samples(9)
        outputs = (
            F.linear(frequencies(texts, 50), model.head.weight, model.head.bias),
            model(**packed(texts)),
            model(**padded_inputs(texts, pad_id=0, width=31)),
        )
        expected, *actual = [torch.autograd.grad(output.pow(3).sum(), list(model.parameters())) for output in outputs]

        for gradients in actual:
            for gradient, other in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient, other, rtol=0, atol=1e-12)

    def test_order_and_padding_do_not_matter(self) -> None:
        model, texts = linear(vocab_size=50), samples(4)
        turned = [text[::-1].copy() for text in texts]
        narrow = model(**padded_inputs(texts, pad_id=0, width=max(map(len, texts))))

        torch.testing.assert_close(model(**padded_inputs(turned, pad_id=7, width=64)), narrow, rtol=0, atol=1e-6)

    def test_words_of_the_second_text_have_their_own_weights(self) -> None:
        model, texts = linear(vocab_size=50, num_token_types=2), samples(7)
        types = [(np.arange(len(text)) >= len(text) // 2).astype(np.int64) for text in texts]
        both = [text + 50 * type for text, type in zip(texts, types, strict=True)]
        expected = F.linear(frequencies(both, 100).float(), model.head.weight, model.head.bias)
        for layout in (packed, lambda texts: padded_inputs(texts, pad_id=0, width=31)):
            inputs = layout(texts) | {"token_type_ids": layout(types)["input_ids"]}

            torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-6)


def test_features_and_pixels_are_multiplied_by_a_matrix() -> None:
    table, picture = linear(num_features=7), linear(image_channels=3, image_size=(4, 6))
    rows, pixels = features(3, 7), images(3, 3, 4, 6)
    flat = pixels["pixel_values"].reshape(3, 72)

    expected = rows["features"] @ table.head.weight.T + table.head.bias
    torch.testing.assert_close(table(**rows), expected, rtol=0, atol=1e-6)
    expected = flat @ picture.head.weight.T + picture.head.bias
    torch.testing.assert_close(picture(**pixels), expected, rtol=0, atol=1e-6)
    channels_last = pixels["pixel_values"].contiguous(memory_format=torch.channels_last)
    assert torch.equal(picture(pixel_values=channels_last), picture(**pixels))


def test_gradients_reach_every_parameter() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Tensor]]] = [
        ({"num_features": 7}, features(4, 7)),
        ({"image_channels": 3, "image_size": (4, 6)}, images(4, 3, 4, 6)),
        ({"vocab_size": 3}, padded_inputs([np.array([0, 1, 2])], pad_id=0, width=3)),
        ({"vocab_size": 3}, packed([np.array([0, 1]), np.array([2])])),
    ]
    for arguments, inputs in cases:
        model = linear(**arguments)
        assert_gradients_reach_everything(model, inputs)
        assert set(dict(model.named_parameters())) == {"head.weight", "head.bias"}
        assert parameter_count(model) == 5 * (model.head.in_features + 1)


def test_a_loss_that_needs_features_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"^_target_: .*no features"):
        linear(None, num_features=4)


def cases() -> list[Any]:
    tokens = [padded_inputs(samples(count, seed=count), pad_id=0, width=30 + count) for count in (4, 1, 9)]
    return [
        pytest.param({"num_features": 7}, [features(n, 7, n) for n in (4, 1, 9)], FEATURE_AXES, {}, id="features"),
        pytest.param(
            {"image_channels": 3, "image_size": (4, 6)},
            [images(n, 3, 4, 6, n) for n in (4, 1, 9)],
            IMAGE_AXES,
            {},
            id="images",
        ),
        pytest.param({"vocab_size": 50}, tokens, TOKEN_AXES, {"sequence": (1, 64)}, id="tokens"),
    ]


@pytest.mark.parametrize(("facts", "inputs", "axes", "limits"), cases())
def test_exported_outputs_match(facts: Any, inputs: Any, axes: Any, limits: Any, tmp_path: Path) -> None:
    assert_exports_equal(linear(**facts), inputs[0], inputs[1:], axes, limits, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("facts", "inputs", "axes", "limits"), cases())
def test_onnx_outputs_match(facts: Any, inputs: Any, axes: Any, limits: Any, tmp_path: Path) -> None:
    assert_onnx_equal(linear(**facts), inputs[0], inputs[1:], axes, limits, tmp_path)
