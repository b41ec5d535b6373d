from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.export.timing import measure


def test_models_take_turns_at_every_shape() -> None:
    calls: list[tuple[str, int]] = []

    def forward(name: str) -> object:
        def call(inputs: Mapping[str, Tensor]) -> Tensor:
            calls.append((name, len(inputs["x"])))
            return inputs["x"]

        return call

    inputs = [({"batch": size}, {"x": torch.zeros(size)}) for size in (1, 8)]
    rows = measure({"pytorch": forward("pytorch"), "onnx": forward("onnx")}, inputs, seconds=0.0)
    assert [row.sizes for row in rows] == [{"batch": 1}, {"batch": 8}]
    assert all(set(row.milliseconds) == {"pytorch", "onnx"} for row in rows)
    assert all(value > 0 for row in rows for value in row.milliseconds.values())
    # Two to warm up and three timed, whatever the time.
    assert calls == [(name, size) for size in (1, 8) for _ in range(5) for name in ("pytorch", "onnx")]
