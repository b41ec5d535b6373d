from dataclasses import FrozenInstanceError, dataclass

import pytest

from trainer.protocols import TaskInfo


def test_task_info_passes_only_fields_that_apply() -> None:
    assert TaskInfo(num_outputs=3, pad_id=0).arguments() == {"pad_id": 0, "num_outputs": 3}
    # None is a value of num_outputs: it asks for the model's own features.
    assert TaskInfo(num_outputs=None).arguments() == {"num_outputs": None}


def test_task_info_is_frozen() -> None:
    info = TaskInfo(num_outputs=3)
    with pytest.raises(FrozenInstanceError):
        info.num_outputs = 4  # type: ignore[misc]


def test_subclass_of_task_info_passes_its_own_fields() -> None:
    @dataclass(frozen=True, kw_only=True)
    class VideoInfo(TaskInfo):
        num_frames: int

    assert VideoInfo(num_outputs=2, num_frames=8).arguments() == {"num_outputs": 2, "num_frames": 8}
