import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import StandardScaler

from trainer.task.numeric import Moments

finite = st.floats(-1e6, 1e6)
tables = arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=finite | st.just(np.nan))


def moments_of(values: np.ndarray, size: int) -> Moments:
    moments = Moments(values.shape[1])
    for start in range(0, len(values), size):
        moments.add(values[start : start + size])
    return moments


@settings(max_examples=30)
@given(tables, st.integers(1, 7))
def test_batches_of_any_size_give_what_scikit_learn_gives(values: np.ndarray, size: int) -> None:
    values[0] = 1.0
    moments = moments_of(values, size)
    reference = StandardScaler().fit(values)

    assert moments.count.tolist() == (~np.isnan(values)).sum(0).tolist()
    np.testing.assert_allclose(moments.mean, reference.mean_, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(moments.std, np.nanstd(values, axis=0), rtol=1e-7, atol=1e-6)
    assert moments.low.tolist() == np.nanmin(values, axis=0).tolist()
    assert moments.high.tolist() == np.nanmax(values, axis=0).tolist()


def test_a_small_spread_around_a_large_mean_keeps_its_digits() -> None:
    values = 1e9 + np.arange(1000.0)[:, None] % 7
    moments = moments_of(values, 64)

    assert moments.std == pytest.approx(np.std(values - 1e9, axis=0), rel=1e-9)


def test_what_is_the_same_everywhere_has_no_spread_whatever_rounding_does() -> None:
    moments = moments_of(np.full((10_001, 1), 0.1), 1000)

    assert moments.std.tolist() == [0.0]


def test_infinite_entries_and_columns_without_any() -> None:
    moments = moments_of(np.array([[1.0, np.nan], [np.inf, np.nan], [3.0, -np.inf]]), 2)

    assert moments.count.tolist() == [2, 0]
    assert moments.mean.tolist() == [2.0, 0.0]
    assert moments.std.tolist() == [1.0, 0.0]


def test_what_is_too_large_is_not_finite_and_no_warning() -> None:
    assert not np.isfinite(moments_of(np.array([[1e300], [-1e300]]), 1).std).any()
