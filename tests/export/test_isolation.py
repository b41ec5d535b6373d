import logging
import random
import sys
import warnings

import numpy as np
import pytest
import torch

from trainer.export.isolation import random_state_kept, silence


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(()).item()


@pytest.mark.parametrize("error", [None, ValueError])
def test_random_states_are_put_back(error: type[Exception] | None) -> None:
    expected = None
    with random_state_kept():
        expected = draw()
    try:
        with random_state_kept():
            draw()
            if error:
                raise error
    except ValueError:
        pass
    with random_state_kept():
        assert draw() == expected


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
