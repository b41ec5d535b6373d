"""`compile=true` trains what eager PyTorch trains, under the same names."""

from pathlib import Path

import pytest
from safetensors import safe_open

from tests.support.jobs import events, train, working_in, write_data

STEPS = 6


# torch.compile itself still imports parts that torch.jit has made.
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.slow
def test_compiled_training_has_the_losses_of_eager_training(tmp_path: Path) -> None:
    with working_in(tmp_path):
        job = [*write_data(tmp_path), f"train.duration={STEPS}", "model.dropout=0.0"]
        assert train(tmp_path / "eager", *job) == 0
        assert train(tmp_path / "compiled", *job, "compile=true") == 0

    losses = [[event["loss"] for event in events(tmp_path / name, "train")] for name in ("eager", "compiled")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    names = []
    for name in ("eager", "compiled"):
        file = tmp_path / name / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
        with safe_open(file, framework="numpy") as weights:
            names.append(set(weights.keys()))
    assert names[0] == names[1]
