import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from trainer.task.regression_metrics import pearson, r2, regression_metrics, spearman

small = st.integers(-3, 3).map(float)
rows = st.lists(st.tuples(small, small, small, small), min_size=3, max_size=40)


def computed(output: torch.Tensor, target: torch.Tensor, scale: list[float], size: int = 4) -> dict[str, float]:
    metrics = regression_metrics(scale)
    for start in range(0, len(output), size):
        metrics.update(output[start : start + size], target[start : start + size])
    return {name: value.item() for name, value in metrics.compute().items()}


def test_metrics_equal_scikit_learn_and_scipy_in_the_users_units() -> None:
    generator = np.random.default_rng(0)
    mean, std = np.array([1000.0, -3.0]), np.array([250.0, 0.01])
    target = generator.normal(size=(200, 2)).astype(np.float32)
    output = (target + generator.normal(size=(200, 2))).astype(np.float32)
    got = computed(torch.from_numpy(output), torch.from_numpy(target), std.tolist())
    actual, predicted = target.astype(float) * std + mean, output.astype(float) * std + mean

    assert got == pytest.approx(
        {
            "r2": reference.r2_score(actual, predicted),
            "mae": reference.mean_absolute_error(actual, predicted),
            "rmse": reference.root_mean_squared_error(actual, predicted),
            "pearson": np.mean([stats.pearsonr(actual[:, value], predicted[:, value])[0] for value in (0, 1)]),
            "spearman": np.mean([stats.spearmanr(actual[:, value], predicted[:, value])[0] for value in (0, 1)]),
        },
        rel=1e-9,
    )


@settings(max_examples=25)
@given(rows)
def test_ties_and_constants_equal_scikit_learn_and_scipy(rows: list[tuple[float, ...]]) -> None:
    table = torch.tensor(rows, dtype=torch.float64)
    output, target = table[:, :2], table[:, 2:]

    expected = reference.r2_score(target.numpy(), output.numpy(), multioutput="raw_values")
    np.testing.assert_allclose(r2(output, target).numpy(), expected, atol=1e-12)
    for value in (0, 1):
        both = output[:, value].numpy(), target[:, value].numpy()
        if min(len(np.unique(each)) for each in both) == 1:
            assert pearson(output, target)[value].isnan()
            assert spearman(output, target)[value].isnan()
            continue
        assert pearson(output, target)[value].item() == pytest.approx(stats.pearsonr(*both)[0], abs=1e-12)
        assert spearman(output, target)[value].item() == pytest.approx(stats.spearmanr(*both)[0], abs=1e-12)


def test_many_equal_targets_do_not_overflow_the_ranks() -> None:
    target = torch.zeros(200_000, 1, dtype=torch.float64)
    target[:50_000, 0] = torch.arange(50_000)
    output = target.clone()

    assert spearman(output, target).item() == pytest.approx(1.0)


def test_split_of_one_sample() -> None:
    values = computed(torch.tensor([[1.0]]), torch.tensor([[2.0]]), [10.0])

    assert (values["r2"], values["mae"], values["rmse"]) == (0.0, 10.0, 10.0)


def test_metrics_have_a_direction_and_share_one_copy_of_the_split() -> None:
    metrics = regression_metrics([1.0])
    metrics.update(torch.zeros(3, 1), torch.ones(3, 1))

    better = {name: metric.higher_is_better for name, metric in metrics.items(keep_base=True)}
    assert better == {"r2": True, "mae": False, "rmse": False, "pearson": True, "spearman": True}
    assert list(metrics.compute_groups.values()) == [["mae", "pearson", "r2", "rmse", "spearman"]]
    metrics.reset()
    metrics.update(torch.ones(3, 1), torch.ones(3, 1))
    assert metrics.compute()["mae"] == 0
