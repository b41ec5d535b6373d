"""TensorBoard's reader finds in the event files what a run has logged."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support.jobs import TINY, checkpoint_files, events, train, working_in, write_roles
from tests.support.ranks import run_ranks
from trainer.config.command import check_command
from trainer.errors import ConfigError
from trainer.report.statistics import count_classes
from trainer.report.tensorboard import TensorBoard, draw_confusion

JOB = ["train.duration=6", "checkpoint.every=3", "train.eval_every=3", "optimizer.layer_decay=0.5"]
SECRET = "hunter2"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("tensorboard")
    with working_in(folder):
        yield [*write_roles(folder), *JOB]


@pytest.fixture(scope="module")
def run(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    options = ["logger.tensorboard=true", "logger.histograms=3", f"model.weights_ignore=['token={SECRET}']"]
    assert train(folder, *job, *options) == 0
    return folder


@pytest.fixture(scope="module")
def written(run: Path) -> EventAccumulator:
    return read(run)


def read(run: Path) -> EventAccumulator:
    """Return what the event files of a run contain."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return events


def test_histograms_hold_every_trained_parameter_and_its_gradient(run: Path, written: EventAccumulator) -> None:
    weights = load_file(run / "checkpoints/step-00000006/model.safetensors")
    tags = {f"{what}/model.{name}" for name in weights for what in ("parameters", "gradients")}
    assert set(written.Tags()["histograms"]) == tags
    for name, tensor in weights.items():
        third, last = written.Histograms(f"parameters/model.{name}")
        assert (third.step, last.step) == (3, 6)
        histogram = last.histogram_value
        assert (histogram.num, sum(histogram.bucket)) == (tensor.numel(), tensor.numel())
        assert (histogram.min, histogram.max) == (tensor.min().item(), tensor.max().item())
        assert histogram.sum == pytest.approx(tensor.double().sum().item())
    gradients = [written.Histograms(tag)[-1].histogram_value for tag in tags if tag.startswith("gradients")]
    norm = sum(gradient.sum_squares for gradient in gradients) ** 0.5
    assert norm == pytest.approx(min(1.0, events(run, "train")[-1]["grad_norm"]), rel=1e-4)


def test_histograms_do_not_move_a_bit(run: Path, job: list[str], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    assert train(plain, *job) == 0
    assert checkpoint_files(plain, 6) == checkpoint_files(run, 6)


def test_learning_rates_of_all_groups(run: Path, written: EventAccumulator) -> None:
    tags = [tag for tag in written.Tags()["scalars"] if tag.startswith("train/learning_rates/")]
    assert sorted(tag.rpartition("/")[2] for tag in tags) == ["0.00025", "0.0005", "0.001"]
    for base in ("0.00025", "0.0005", "0.001"):
        rates = [scalar.value for scalar in written.Scalars(f"train/learning_rates/{base}")]
        largest = [scalar.value for scalar in written.Scalars("train/lr")]
        assert rates == pytest.approx([rate * float(base) / 0.001 for rate in largest])


def test_samples_with_their_predictions(written: EventAccumulator) -> None:
    (text,) = written.Tensors("test/samples/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["| text | target | prediction | loss |", "| --- | --- | --- | --- |"]
    assert len(lines) == 6
    assert {line.split(" | ")[1] for line in lines[2:]} <= {"animal", "fruit", "tool"}


def test_hyper_parameters_with_the_final_scores(run: Path, written: EventAccumulator) -> None:
    start = HParamsPluginData.FromString(written.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    values = dict(start.session_start_info.hparams.items())
    assert values["optimizer.lr"].number_value == 0.001
    assert values["scheduler.warmup"].string_value == "5%"
    assert SECRET not in str(values)
    final = events(run, "eval")[-1]
    for name in ("loss", "accuracy", "macro_f1"):
        (scalar,) = written.Scalars(f"final/{name}")
        assert scalar.value == pytest.approx(final[name])
    experiment = HParamsPluginData.FromString(written.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert "final/accuracy" in {info.name.tag for info in experiment.experiment.metric_infos}


def test_the_confusion_is_an_image(written: EventAccumulator) -> None:
    (image,) = written.Images("test/confusion")
    drawn = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert drawn.shape[0] == drawn.shape[1] >= 3 * 44
    assert drawn.dtype == np.uint8


@pytest.mark.parametrize(("num_classes", "size"), [(2, None), (30, 900), (1000, 1000)])
def test_a_confusion_shows_the_shares_of_each_row(num_classes: int, size: int | None) -> None:
    names = [f"class {number}" for number in range(num_classes)]
    targets = [names[0]] * 4 + names[1:]
    predictions = [names[0]] + [names[1]] * 3 + names[1:]
    image = draw_confusion(count_classes(targets, predictions, names))
    if size is None:
        margin = image.shape[0] - 2 * 44
        corners = image[margin + 2 :: 44, margin + 2 :: 44]
    else:
        assert image.shape == (size, size, 3)
        corners = image[:: size // num_classes, :: size // num_classes]
    darkness = 255 - corners.astype(int).sum(axis=-1) / 3
    assert darkness[1, 1] > darkness[0, 1] > darkness[0, 0] > darkness[1, 0]


@pytest.mark.parametrize(
    "text", ["a|b", "<script>x</script>", "*bold*", "line\nbreak", "[link](javascript:x)", "\x1b[2J"]
)
def test_texts_of_samples_cannot_change_the_table(text: str, tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.add_table("samples", ["text", "target"], [[text, "a"]], 1)
    board.close()
    written = EventAccumulator(str(tmp_path))
    written.Reload()
    *_, row = written.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode().splitlines()
    assert re.findall(r"(?<!\\)[|<>\[\]()*]", row) == ["|"] * 3
    assert "\x1b" not in row


def test_values_that_are_not_finite_are_left_out_of_histograms(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.add_histogram("some", torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.bfloat16), 1)
    board.add_histogram("none", torch.tensor([float("nan")]), 1)
    board.close()
    written = EventAccumulator(str(tmp_path))
    written.Reload()
    assert written.Tags()["histograms"] == ["some"]
    assert written.Histograms("some")[0].histogram_value.num == 1


def test_histograms_need_tensorboard(job: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"logger\.histograms: histograms are written for TensorBoard"):
        check_command("train", [*job, "logger.histograms=1ep", "logger.tensorboard=false"])


@pytest.mark.slow
def test_histograms_of_shards_are_those_of_complete_weights(job: list[str], tmp_path: Path) -> None:
    options = ["logger.tensorboard=true", "logger.histograms=3", "model.dropout=0"]
    assert train(tmp_path / "one", *job, *options, "train.accumulate=2") == 0
    arguments = ["train", *TINY, *job, *options, "shard=true", f"run.dir={tmp_path / 'two'}"]
    assert run_ranks(arguments, 2, tmp_path / "output") == [0, 0]
    one, two = (read(tmp_path / name) for name in ("one", "two"))
    assert one.Tags()["histograms"] == two.Tags()["histograms"]
    for tag in one.Tags()["histograms"]:
        for first, second in zip(one.Histograms(tag), two.Histograms(tag), strict=True):
            assert first.histogram_value.num == second.histogram_value.num
            for name in ("min", "max", "sum", "sum_squares"):
                value, other = (getattr(each.histogram_value, name) for each in (first, second))
                assert other == pytest.approx(value, rel=1e-3, abs=1e-4), (tag, name)
