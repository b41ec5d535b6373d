"""The samples of an epoch, from the keys of a job to the counts of the draws; wrong keys and odd data."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.jobs import TINY, assert_resumes, working_in
from tests.test_conf import job_of
from trainer.builders.data import build_batch_plan, build_encoded, build_task
from trainer.builders.sampling import measure_draws
from trainer.cli import main
from trainer.commands.run_log import describe_draws
from trainer.config.command import check_command
from trainer.data.batch_plan import BatchPlan
from trainer.data.order import GroupSampler
from trainer.errors import ConfigError, DataError, TrainerError

TEXT = [option for option in TINY if option.startswith("task.")]
LABELS = ["a"] * 24 + ["b"] * 9 + ["c"] * 3


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two training files of 24 and 12 rows, and a validation file."""
    folder = tmp_path_factory.mktemp("sampling")
    lines = [
        f"text number {number},{label},{'north' if number % 4 else 'south'},{number % 3},"
        f"{'' if number == 5 else 1},{-1 if number == 6 else 1},0,{1 + number % 2}e307"
        for number, label in enumerate(LABELS)
    ]
    for name, part in (("one", lines[:24]), ("two", lines[24:]), ("validation", lines[::3])):
        (folder / f"{name}.csv").write_text("\n".join(["text,label,site,weight,gap,minus,zero,huge", *part]) + "\n")
    (folder / "nowhere.csv").write_text("text,label,site,weight,gap,minus,zero,huge\nx,a,north,1,1,1,1,1\n")
    with working_in(folder):
        yield folder


def job(*overrides: str) -> list[str]:
    data = ["data=files", "data.train=[one.csv,two.csv]", "data.validation=validation.csv", "data.split.test=0"]
    return [*data, "data.cache_dir=cache", *TEXT, "train.batch_size=5", *overrides]


def build_plan(*overrides: str) -> tuple[BatchPlan, list[str]]:
    """Return the plan of a job on the files, and the label of each training sample."""
    return plan_of(job(*overrides))


def plan_of(keys: list[str]) -> tuple[BatchPlan, list[str]]:
    """Return the plan of a job, and the label of each training sample."""
    made = job_of(*keys)
    task = build_task(made)
    encoded = build_encoded(made, task, fitted=False)
    names = task.info().class_names or []
    return build_batch_plan(made, task, encoded), [names[each] for each in encoded.splits["train"][:]["label"]]


def counts(*overrides: str, epoch: int = 0) -> dict[str, int]:
    """Return how often an epoch of a job draws each label."""
    plan, labels = build_plan(*overrides)
    first = epoch * plan.steps_per_epoch
    batches = [plan.batch(step) for step in range(first, first + plan.steps_per_epoch)]
    assert [len(batch.ids) for batch in batches] == [5] * 7 + [1]
    return dict(Counter(labels[sample] for batch in batches for sample in batch.ids))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"a": 24, "b": 9, "c": 3}),
        (["loader.sampler=balanced"], {"a": 12, "b": 12, "c": 12}),
        (["loader.sampler=weighted", "loader.weights={c:3,a:0.5}"], {"a": 14, "b": 11, "c": 11}),  # of 12 : 9 : 9
        (["loader.sampler=weighted", "loader.weights={a:0,c:2}"], {"b": 22, "c": 14}),  # of 9 : 6
        # Every third row has the weight 0, 1 and 2; all labels have as many of each.
        (["loader.sampler=weighted", "loader.weights=weight"], {"a": 24, "b": 9, "c": 3}),
        (["loader.sampler=balanced", "loader.batching=bucketed"], {"a": 12, "b": 12, "c": 12}),
        (["data.mix={one.csv:0.5,two.csv:0.5}"], {"a": 18, "b": 14, "c": 4}),  # 18 of each file
        (["data.mix={one.csv:1,t*.csv:3}"], {"a": 9, "b": 20, "c": 7}),
    ],
)
def test_labels_of_an_epoch(overrides: list[str], expected: dict[str, int]) -> None:
    found = counts(*overrides)
    assert sum(found.values()) == len(LABELS)
    assert all(abs(found.get(label, 0) - count) <= 1 for label, count in expected.items()), found
    assert found.keys() == expected.keys()


def test_a_column_is_balanced() -> None:
    plan, _ = build_plan("loader.sampler=balanced", "loader.sampler_column=site")
    assert measure_draws(plan.sampler) == {
        "by": "site",
        "draws": 36,
        "groups": [{"value": "north", "rows": 27, "draws": 18}, {"value": "south", "rows": 9, "draws": 18}],
        "unseen": 9,
        "most_repeated": 2,
    }


def test_a_column_of_weights_draws_each_row_in_proportion() -> None:
    plan, _ = build_plan("loader.sampler=weighted", "loader.weights=weight")
    drawn = np.bincount([sample for step in range(8) for sample in plan.batch(step).ids], minlength=36)
    assert (drawn[0::3] == 0).all()
    assert (drawn[1::3] == 1).all()
    assert (drawn[2::3] == 2).all()


def draws(*overrides: str) -> dict[str, int]:
    """Return the draws of each group in the first epoch, by its name."""
    measured = measure_draws(build_plan(*overrides)[0].sampler)
    assert measured is not None
    return {group["value"]: group["draws"] for group in measured["groups"]}


def test_a_sampler_divides_the_share_of_a_file() -> None:
    # one.csv has 24 rows of a; two.csv has 9 of b and 3 of c.
    mix = "data.mix={one.csv:1,two.csv:2}"
    assert draws(mix, "loader.sampler=balanced") == {"one.csv, a": 12, "two.csv, b": 12, "two.csv, c": 12}
    # Of 9 b to 2 * 3 c.
    weighted = draws(mix, "loader.sampler=weighted", "loader.weights={c:2}")
    assert weighted == {"one.csv, a": 12, "two.csv, b": 14, "two.csv, c": 10}
    # Rows of the weights 0, 1 and 2, as many of each in both files.
    plan, _ = build_plan(mix, "loader.sampler=weighted", "loader.weights=weight")
    assert plan.sampler is not None
    assert plan.sampler.by == "file and weight"
    counts = plan.sampler.counts(0)
    assert not counts.reshape(-1, 3)[:, 0].any()
    assert [counts[:24].sum(), counts[24:].sum()] == [12, 24]
    assert abs(counts[24:].reshape(-1, 3).sum(axis=0) - [0, 8, 16]).max() <= 1


def test_sums_of_large_weights_do_not_overflow() -> None:
    for shares in ("{one.csv:1e38,two.csv:3e38}", "{one.csv:1e-38,two.csv:3e-38}"):
        plan, _ = build_plan(f"data.mix={shares}", "loader.sampler=weighted", "loader.weights=huge")
        assert plan.sampler is not None
        assert plan.sampler.sizes.tolist() == [1] * 36
        counts = plan.sampler.counts(0).reshape(-1, 2)
        assert [counts[:12].sum(), counts[12:].sum()] == [9, 27]
        assert abs(counts[:12].sum(axis=0) - [3, 6]).max() <= 1
        assert abs(counts[12:].sum(axis=0) - [9, 18]).max() <= 1


@pytest.mark.parametrize("folds", [[], ["data.folds=3", "data.fold=1"]])
def test_corrections_change_labels_and_no_other_column(folds: list[str], tmp_path: Path) -> None:
    # A row of b in the south becomes c, of which there were three.
    path = tmp_path / "fixed.csv"
    path.write_text("file,row,label,correction\ntwo.csv,5,b,c\n")
    fixed = [f"data.corrections={path}", *folds]
    for rule in (
        ["loader.sampler=balanced", "loader.sampler_column=site"],
        ["loader.sampler=weighted", "loader.weights=weight"],
        ["loader.sampler=balanced"],
    ):
        corrected, original = (build_plan(*rule, *keys)[0].sampler for keys in (fixed, folds))
        assert corrected is not None
        assert original is not None
        change = [0, -1, 1] if len(rule) == 1 else 0
        assert ((corrected.sizes - original.sizes) == change).all()
        assert (corrected.counts(0) == original.counts(0)).all()


def test_samplers_read_the_columns_of_folds() -> None:
    # The rows of the validation file are in the folds, too.
    folds = ["data.folds=3", "data.fold=1"]
    assert draws("loader.sampler=balanced", "loader.sampler_column=site", *folds).keys() == {"north", "south"}
    mixed = draws("data.mix={one.csv:1,two.csv:1,validation.csv:2}", *folds)
    assert abs(mixed["validation.csv"] - sum(mixed.values()) / 2) < 1
    assert abs(mixed["one.csv"] - sum(mixed.values()) / 4) < 1
    plan, _ = build_plan("loader.sampler=weighted", "loader.weights=weight", *folds)
    assert plan.sampler is not None
    assert plan.sampler.counts(0).sum() == len(plan.sampler.sizes)


def test_values_without_a_row_are_left_out() -> None:
    # The limit leaves a row of `a` and one of `c`.
    plan, labels = build_plan("loader.sampler=balanced", "loader.limit=2")
    assert labels == ["a", "c"]
    assert plan.sampler is not None
    assert plan.sampler.counts(0).tolist() == [1, 0, 1]


def test_one_value_is_drawn_like_the_whole() -> None:
    plan, _ = build_plan("loader.sampler=balanced", "loader.sampler_column=zero")
    assert sorted(sample for step in range(8) for sample in plan.batch(step).ids) == list(range(36))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loader.weights={a:1}"], "loader.weights: has no effect here, got {'a': 1}. Set loader.sampler=weighted."),
        (["loader.sampler=weighted"], "loader.weights: loader.sampler=weighted needs weights. Set loader.weights={<"),
        (["loader.sampler_column=site"], "loader.sampler_column: has no effect here, got 'site'. Set loader.sampler="),
        (
            ["loader.sampler=weighted", "loader.weights=weight", "loader.sampler_column=site"],
            "loader.sampler_column: has no effect with a column of weights, got 'site'. Set it to null.",
        ),
        (["loader.sampler=weighted", "loader.weights={}"], "loader.weights: gives every row the same weight, got {}. "),
        (["loader.sampler=weighted", "loader.weights={a:-1}"], "loader.weights.a: must be at least 0, got -1"),
        (["loader.sampler=weighted", "loader.weights={a:inf}"], "loader.weights.a: must be finite and at least 0, got"),
        (
            ["loader.sampler=weighted", "loader.weights={a:1e39}"],
            "loader.weights.a: must be at least 0 and at most 3.4e",
        ),
        (
            ["loader.sampler=weighted", "loader.weights={a:high}"],
            "loader.weights: must be a mapping to numbers, text or ",
        ),
        (
            ["loader.sampler=weighted", "loader.weights={null:1}"],
            "loader.weights: cannot be set. A key of the mapping is",
        ),
        (["loader.sampler=balance"], "loader.sampler: must be one of shuffled, balanced, weighted, got 'balance'. Did"),
        (
            ["task=multilabel_classification", "loader.sampler=balanced"],
            "loader.sampler: the rows of this task have no single class, got 'balanced'. Set loader.sampler_column=",
        ),
        (["task=token_classification", "loader.sampler=balanced"], "loader.sampler: the rows of this task have no sin"),
        (["task=regression", "loader.sampler=weighted", "loader.weights={a:1}"], "loader.sampler: the rows of this ta"),
        (
            ["loader.sampler=balanced", "loader.sampler_column=label", "data.corrections=two.csv"],
            "loader.sampler_column: the column has the labels without data.corrections, got 'label'. Leave out ",
        ),
        (["data.mix={}"], "data.mix: must not be empty, got {}"),
        (["data.mix={one.csv:0}"], "data.mix.one.csv: must be greater than 0, got 0"),
        (["data.mix={one.csv:nan}"], "data.mix.one.csv: must be finite and greater than 0, got nan"),
        (["data.mix={one.csv:1e39}"], "data.mix.one.csv: must be greater than 0 and at most 3.4e38, got 1e+39"),
        (["data.mix={one.csv:0.5,tow.csv:0.5}"], "data.mix: no such file, got 'tow.csv'. Did you mean two.csv?"),
    ],
)
def test_wrong_keys_are_refused_without_the_data(overrides: list[str], message: str, folder: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        check_command("train", job(*overrides))
    assert any(each.startswith(message) for each in caught.value.messages), caught.value.messages


def test_a_mix_needs_files(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.mix: needs a source whose training files you name\. Use"):
        check_command("train", ["data.mix={one.csv:1}"])


@pytest.fixture(scope="module")
def saved(folder: Path) -> list[str]:
    """Return the keys of a job on a saved data set with the rows of the files as its splits."""
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    tables = {name: Dataset.from_csv(f"{name}.csv", cache_dir="csv") for name in ("one", "two", "validation")}
    DatasetDict(tables).save_to_disk("saved")
    splits = "data.splits={train:[one,two],validation:validation,test:null}"
    return ["data=hub", "data.path=saved", splits, "data.split.test=0", "data.cache_dir=cache", *TEXT]


def test_splits_of_the_hub_are_mixed_as_files_are(saved: list[str]) -> None:
    def labels_of(keys: list[str]) -> list[str]:
        plan, labels = plan_of([*keys, "train.batch_size=5"])
        return [labels[sample] for step in range(plan.steps_per_epoch) for sample in plan.batch(step).ids]

    assert labels_of(saved) == labels_of(job())
    assert labels_of([*saved, "data.mix={one:1,two:3}"]) == labels_of(job("data.mix={one.csv:1,two.csv:3}"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.mix={one:1}"], "data.mix: has no share for a training split, got 'two'. Add it."),
        (
            ["data.mix={one:1,two:1,tow:1}"],
            "data.mix: names no split of data.splits.train, got 'tow'. Did you mean two. Leave it out, or add it to",
        ),
        (["data.mix={one:1}", "data.splits.train=[one]"], "data.mix: needs several splits in data.splits.train, got"),
        (
            ["data.mix={one:1,two:1,three:1,validation:1}", "data.folds=2"],
            "data.mix: names no split of data.splits.train with rows for training, got 'three'. Leave it out, or add",
        ),
        (["data.mix={one:1,two:1}", "data.splits.train=one"], "data.mix: needs several splits in data.splits.train,"),
        (["data.splits.train=[one,one]"], "data.splits.train: must not name a split twice, got ['one', 'one']. Leave"),
        (["data.splits.train=[one,validation]"], "data.splits.train: must not name the split of validation or test, "),
        (
            ["data.splits.train=[one,two]", "data.splits.validation={clean:two}"],
            "data.splits.train: must not name the split of a validation set, got ['one', 'two']. Leave it out of one",
        ),
        (["data.splits.validation=[two]"], "data.splits.validation: must be the name of a split, got ['two']. Name"),
        (["data.splits.train=[one,tow]"], "data.splits.train: the data set has no such split, got 'tow'. Did you mean"),
    ],
)
def test_wrong_splits_of_the_hub_are_reported(keys: list[str], message: str, saved: list[str]) -> None:
    with pytest.raises(TrainerError) as caught:
        plan_of([*saved, *keys])
    assert any(each.startswith(message) for each in caught.value.messages), caught.value.messages


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loader.sampler=balanced", "loader.sampler_column=sites"], "loader.sampler_column: no such column, got 'sit"),
        (["loader.sampler=weighted", "loader.weights=weigth"], "loader.weights: no such column, got 'weigth'. Did you"),
        (
            ["loader.sampler=weighted", "loader.weights={d:1}"],
            "loader.weights: no row of training has this value, got 'd'. Known: a, b, c.",
        ),
        (["loader.sampler=weighted", "loader.weights={a:0,b:0,c:0}"], "loader.weights: all weights are 0, got {"),
        (["loader.sampler=weighted", "loader.weights=zero"], "loader.weights: all weights are 0, got 'zero'. Name ano"),
        (
            ["loader.sampler=weighted", "loader.weights=gap"],
            "one.csv, row 6, column 'gap': must be a number of at least 0",
        ),
        (
            ["loader.sampler=weighted", "loader.weights=minus"],
            "one.csv, row 7, column 'minus': must be a number of at least 0, got '-1'",
        ),
        (
            ["loader.sampler=balanced", "loader.sampler_column=gap"],
            "one.csv, row 6, column 'gap': has no value. Fill in this cell, or choose",
        ),
        (
            ["data.mix={one.csv:1,two.csv:1}", "loader.sampler=weighted", "loader.weights={a:0}"],
            "loader.weights: all weights of an entry of data.mix are 0, got 'one.csv'. Raise one, or leave it out of",
        ),
        (["data.mix={one.csv:1,two.csv:1}", "data.folds=3"], "data.mix: has no share for a training file, got 'valid"),
        (
            ["loader.sampler=balanced", "loader.sampler_column=sites", "data.folds=3"],
            "loader.sampler_column: no such column, got 'sites'. Did you mean site?",
        ),
        (["data.mix={one.csv:1}"], "data.mix: has no share for a training file, got 'two.csv'. Add it."),
        (
            ["data.mix={one.csv:1,two.csv:1,nowhere.csv:1}"],
            "data.mix: names no file of data.train with rows for training, got 'nowhere.csv'. Leave it out, or",
        ),
        (["data.mix={one.csv:1,two.csv:1,o*.csv:1}"], "data.mix: names a file twice, as 'one.csv' and 'o*.csv', got"),
    ],
)
def test_values_that_the_data_does_not_have_are_reported(overrides: list[str], message: str, folder: Path) -> None:
    with pytest.raises(TrainerError) as caught:
        build_plan(*overrides)
    assert caught.value.messages[0].startswith(message), caught.value.messages


def test_a_mix_survives_the_move_of_a_run_and_may_not_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = "data.mix={one.csv:0.5,two.csv:0.5}"
    run = tmp_path / "run"
    kept = ["checkpoint.every=4", "checkpoint.keep=9"]
    assert main(["train", *TINY, *job(mix), f"run.dir={run}", "train.duration=10", *kept]) == 0
    with working_in(tmp_path):
        assert_resumes(run, 4, mix)  # into the second epoch, which starts after step 8
        assert main(["train", f"resume={run}", "train.duration=11", mix]) == 0
        for other in ("data.mix={one.csv:0.6,two.csv:0.5}", "data.mix=null"):
            assert main(["train", f"resume={run}", "train.duration=12", other]) == 2
            assert "cannot change when a run is resumed" in capsys.readouterr().err


def test_plan_shows_what_an_epoch_draws(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", *TINY[:6], *job("loader.sampler=balanced", "device=cpu", "trial=false", "json=true")]
    assert main(line) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)["steps"]
    assert document["draws"]["unseen"] == 12
    assert [group["draws"] for group in document["draws"]["groups"]] == [12, 12, 12]
    assert (document["steps_per_epoch"], document["samples"]) == (8, 4 * 36)


def test_many_groups_are_shown_by_the_least_and_the_most_drawn_ones() -> None:
    sizes = np.arange(1, 1001)
    sampler = GroupSampler(np.repeat(np.arange(1000), sizes), np.ones(1000), 0, "label", [f"c{size}" for size in sizes])
    draws = measure_draws(sampler)
    assert draws is not None
    assert {group["draws"] for group in draws["groups"]} == {500, 501}  # 500.5 of 500,500 rows
    line = describe_draws(draws)
    assert line.startswith("500500 samples by label: c999 0.5 times its 999 rows, c1000 0.5 times its 1,000 rows, ")
    assert ", ..., c3 1.7e+02 times its 3 rows, c2 2.5e+02 times its 2 rows, c1 5e+02 times its 1 row; " in line
    assert line.endswith("; 125,000 rows are not in the first epoch, others up to 500 times")
