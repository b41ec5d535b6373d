import torch

from tests.support.export_models import ToyModel, ToyTask, batches
from trainer.export.subject import Subject


def test_calibration_has_every_sample_a_few_at_a_time() -> None:
    subject = Subject(ToyModel(), ToyTask(), lambda: batches(num_batches=2, batch_size=20))
    parts = subject.calibration()
    assert [len(part["input_ids"]) for part in parts] == [8, 8, 4, 8, 8, 4]
    for batch, three in zip(batches(num_batches=2, batch_size=20), (parts[:3], parts[3:]), strict=True):
        for name, value in batch.inputs.items():
            assert torch.equal(torch.cat([part[name] for part in three]), value)


def test_calibration_without_samples_has_those_of_the_cases() -> None:
    subject = Subject(ToyModel(), ToyTask())
    assert [part["input_ids"].shape for part in subject.calibration()] == [
        case.inputs["input_ids"].shape for case in subject.cases
    ]


def test_what_is_shared_is_made_once() -> None:
    made: list[Subject] = []
    subject = Subject(ToyModel(), ToyTask())
    for _ in range(2):
        subject.once(made.append)
    assert made == [subject]
