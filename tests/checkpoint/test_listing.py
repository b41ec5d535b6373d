"""Which checkpoint is the newest that can be used."""

from pathlib import Path
from typing import Any

from trainer.checkpoint.listing import newest_intact
from trainer.checkpoint.store import Store


def test_the_newest_intact_one_below_a_step(folder: Path, make: Any) -> None:
    store = Store(folder, keep=9)
    for step in (10, 20, 30, 15):  # a run that went on from an earlier step
        store.save(make(step))
    (store.path(20) / "state.json").write_text("{}")

    def found(below: int | None) -> int | None:
        one = newest_intact(folder, below=below)
        return None if one is None else one.step

    assert [found(below) for below in (None, 31, 16, 15, 10)] == [15, 15, 15, 10, None]
    (store.path(15) / "model.safetensors").unlink()
    assert [found(below) for below in (None, 30)] == [30, 10]
    assert newest_intact(folder / "absent") is None
