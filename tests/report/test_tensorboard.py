import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.report.tensorboard import TensorBoard


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def train(sink: TensorBoard, step: int, loss: float) -> None:
    sink.log("train", step=step, epoch=step / 10, values={"loss": loss})


def test_numbers_become_scalars_under_their_event_or_split(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.log("start", step=0, epoch=0.0, values={"seed": 0})
    sink.log("train", step=10, epoch=0.5, values={"loss": 2.0, "lr": 0.25})
    for weights, accuracy in (("raw", 0.5), ("ema", 0.75)):
        values = {"split": "validation", "weights": weights, "accuracy": accuracy}
        sink.log("eval", step=10, epoch=0.5, values=values)
    sink.log("checkpoint", step=10, epoch=0.5, values={"path": "checkpoints/step-00000010", "best": True})
    sink.close()
    assert curves(tmp_path) == {
        "train/loss": [(10, 2.0)],
        "train/lr": [(10, 0.25)],
        "train/epoch": [(10, 0.5)],
        "validation/accuracy": [(10, 0.5)],
        "validation-ema/accuracy": [(10, 0.75)],
    }


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in (10, 20, 30):
        train(first, step, loss=float(step))
    first.close()
    second = TensorBoard(tmp_path)
    second.log("resume", step=20, epoch=2.0, values={})
    train(second, 30, loss=0.5)
    second.close()
    assert curves(tmp_path)["train/loss"] == [(10, 10.0), (20, 20.0), (30, 0.5)]


def test_what_was_logged_before_a_checkpoint_is_on_disk(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    train(sink, 10, loss=2.0)
    sink.log("checkpoint", step=10, epoch=1.0, values={"path": "checkpoints/step-00000010", "best": False})
    assert curves(tmp_path)["train/loss"] == [(10, 2.0)]
    sink.close()


def test_nothing_is_made_without_an_event_and_closing_twice_is_allowed(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path / "tensorboard")
    sink.close()
    sink.close()
    assert not (tmp_path / "tensorboard").exists()


def test_the_writer_is_imported_only_when_it_writes() -> None:
    code = "import sys, trainer.report.tensorboard; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
