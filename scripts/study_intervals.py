"""Measure how often 95 % intervals of macro F1 cover it, if many classes have few rows.

    python scripts/study_intervals.py [--classes 50] [--rows 500] [--samples 200]

Classes have a Zipf distribution; a class is predicted right with a probability from 0.55 to 0.9, else another class at
random, frequent ones more often. Each sample gets an interval by the jackknife (what `trainer eval` reports), and by
three kinds of the bootstrap. Prints one JSON object: the macro F1 of infinitely many rows, its mean over other samples
of the same number of rows, and for each method the share of intervals that cover the one and the other, and the width.
"""

from __future__ import annotations

import argparse
import json
from statistics import NormalDist

import numpy as np
import pyarrow as pa

from trainer.intervals.class_estimates import ClassAverage
from trainer.intervals.confidence import draw_estimates, jackknife_interval, quantile_interval
from trainer.intervals.estimates import make_estimates
from trainer.intervals.resampling import Units

_NUM_REFERENCE = 500
"""Samples whose mean is the macro F1 to expect of one."""


class Population:
    """Classes and predictions.

    Args:
        num_classes: The number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        rank = np.arange(1, num_classes + 1)
        self.names = [f"c{code}" for code in range(num_classes)]
        self.shares = 1 / rank / (1 / rank).sum()
        recall = np.random.default_rng(1).uniform(0.55, 0.9, num_classes)
        wrong = np.tile(self.shares, (num_classes, 1))
        np.fill_diagonal(wrong, 0)
        self.answers = (1 - recall[:, None]) * wrong / wrong.sum(axis=1, keepdims=True)
        np.fill_diagonal(self.answers, recall)
        predicted = self.shares @ self.answers
        self.macro_f1 = float((2 * self.shares * recall / (self.shares + predicted)).mean())

    def sample(self, num_rows: int, seed: int) -> tuple[ClassAverage, Units]:
        """Return the macro F1 of rows as an estimate, and their units."""
        random = np.random.default_rng([5, seed])
        target = random.choice(len(self.names), num_rows, p=self.shares)
        bounds = self.answers.cumsum(axis=1)[target]
        predicted = np.minimum((bounds < random.random(num_rows)[:, None]).sum(axis=1), len(self.names) - 1)
        names = np.array(self.names)
        nothing = pa.nulls(num_rows)
        columns = {"target": names[target], "prediction": names[predicted], "num_targets": np.ones(num_rows)}
        table = pa.table({**columns, "loss": nothing, "probabilities": nothing, "top_classes": nothing})
        units = Units.for_rows(num_rows)
        estimate = make_estimates(table, {"kind": "class", "classes": self.names}, units)["macro_f1"]
        assert isinstance(estimate, ClassAverage)
        return estimate, units


def bias_corrected(draws: np.ndarray, value: float, without: np.ndarray) -> tuple[float, float]:
    """Return the interval by bias-corrected and accelerated percentiles (BCa: Efron 1987).

    Args:
        draws: The values of the draws.
        value: The value.
        without: The values without each row.
    """
    normal = NormalDist()
    below = (np.mean(draws < value) + np.mean(draws <= value)) / 2
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / len(draws), 1 - 0.5 / len(draws))))
    skew = without.mean() - without
    acceleration = float((skew**3).sum() / (6 * (skew**2).sum() ** 1.5))
    ends = [bias + normal.inv_cdf(level) for level in (0.025, 0.975)]
    low, high = np.quantile(draws, [normal.cdf(bias + end / (1 - acceleration * end)) for end in ends])
    return float(low), float(high)


def intervals_of(estimate: ClassAverage, units: Units) -> dict[str, tuple[float, float]]:
    """Return the interval of a sample by each method."""
    value = float(estimate(np.ones((1, units.count)))[0])
    draws = draw_estimates([estimate], units)[:, 0]
    percentile = quantile_interval(draws)
    assert percentile is not None
    without = np.concatenate([estimate(counts) for counts, _ in units.deletions()])
    return {
        "jackknife": jackknife_interval(estimate, units, (0.0, 1.0)),
        "percentile": percentile,
        "basic": (2 * value - percentile[1], 2 * value - percentile[0]),
        "BCa": bias_corrected(draws, value, without),
    }


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--samples", type=int, default=200)
    arguments = parser.parse_args()
    population = Population(arguments.classes)
    others = (population.sample(arguments.rows, 2**31 + number) for number in range(_NUM_REFERENCE))
    expected = float(np.mean([estimate(np.ones((1, units.count)))[0] for estimate, units in others]))
    samples = [intervals_of(*population.sample(arguments.rows, seed)) for seed in range(arguments.samples)]
    methods = {}
    for name in samples[0]:
        low, high = np.array([sample[name] for sample in samples]).T
        truths = {"infinite": population.macro_f1, "same_size": expected}
        covered = {key: round(float(((low <= truth) & (truth <= high)).mean()), 3) for key, truth in truths.items()}
        methods[name] = {**covered, "width": round(float((high - low).mean()), 4)}
    print(json.dumps({**vars(arguments), "macro_f1": truths, "covered": methods}))


if __name__ == "__main__":
    run()
