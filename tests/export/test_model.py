"""The model to export, and what an export leaves unchanged."""

import logging
import random
import sys
import warnings

import numpy as np
import pytest
import torch

from tests.support.export_models import ToyModel, ToyTask, batches
from trainer.export.model import ExportModel, preserve_random_state, silence


def test_calibration_has_every_sample_in_small_batches() -> None:
    model = ExportModel(ToyModel(), ToyTask(), training=lambda count: batches(2, batch_size=count), calibration=20)
    parts = model.calibration_inputs()
    assert [len(part["input_ids"]) for part in parts] == [8, 8, 4, 8, 8, 4]
    for batch, three in zip(batches(num_batches=2, batch_size=20), (parts[:3], parts[3:]), strict=True):
        for name, value in batch.inputs.items():
            assert torch.equal(torch.cat([part[name] for part in three]), value)


def test_calibration_without_samples_uses_the_cases() -> None:
    model = ExportModel(ToyModel(), ToyTask())
    assert [part["input_ids"].shape for part in model.calibration_inputs()] == [
        case.inputs["input_ids"].shape for case in model.cases
    ]


def test_shared_results_are_computed_once() -> None:
    made: list[ExportModel] = []
    model = ExportModel(ToyModel(), ToyTask())
    for _ in range(2):
        model.compute_once(made.append)
    assert made == [model]


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(()).item()


@pytest.mark.parametrize("error", [None, ValueError])
def test_random_states_are_restored(error: type[Exception] | None) -> None:
    expected = None
    with preserve_random_state():
        expected = draw()
    try:
        with preserve_random_state():
            draw()
            if error:
                raise error
    except ValueError:
        pass
    with preserve_random_state():
        assert draw() == expected


@pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 has no such setting")
def test_operations_have_no_stack_trace_in_the_block_only() -> None:
    def count_traces() -> int:
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        return sum(node.stack_trace is not None for node in program.graph.nodes)

    with silence():
        assert count_traces() == 0
    assert count_traces() > 0


def test_silence_ends_with_the_block(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("noisy")
    with silence():
        logger.critical("inside")
        warnings.warn("inside", UserWarning, stacklevel=1)
        print("inside")
        print("inside", file=sys.stderr)
    logger.warning("after")
    print("after")
    assert [record.message for record in caplog.records] == ["after"]
    assert capsys.readouterr() == ("after\n", "")
    with pytest.warns(UserWarning, match="after"):
        warnings.warn("after", UserWarning, stacklevel=1)
