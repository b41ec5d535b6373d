"""Names of the user's own parts, read in the working directory."""

from pathlib import Path

import pytest

from trainer.config.lint import check_command
from trainer.config.own_parts import own_part_fault
from trainer.errors import ConfigError

SOURCE = """
import torch.nn
from losses import Huber as Robust

if torch:
    Plain = torch.nn.MSELoss
else:
    class Other: ...

class Squared:
    def num_targets(self, target): ...
"""


def test_a_misspelt_part_is_told_with_the_near_name_and_nothing_is_imported(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "my_parts.py").write_text(SOURCE + "raise SystemExit('imported')")
    with pytest.raises(ConfigError) as caught:
        check_command("train", ["loss._target_=my_parts.Sqared", "optimizer.lr=-1"])
    assert [message for message in caught.value.messages if "_target_" in message] == [
        "loss._target_: there is no Sqared in my_parts, got 'my_parts.Sqared'. Did you mean Squared."
    ]
    assert len(caught.value.messages) == 2


@pytest.mark.parametrize("name", ["Squared", "Squared.num_targets", "Robust", "Plain", "Other", "torch"])
def test_what_a_module_binds_is_there(name: str, elsewhere: Path) -> None:
    (elsewhere / "my" / "inner").mkdir(parents=True)
    for folder in (elsewhere / "my", elsewhere / "my" / "inner"):
        (folder / "__init__.py").touch()
    (elsewhere / "my" / "inner" / "parts.py").write_text(SOURCE)
    assert own_part_fault(f"my.inner.parts.{name}") is None
    assert own_part_fault("my.inner.parts.Nothing") is not None


@pytest.mark.parametrize(
    "source", ["from losses import *", "def __getattr__(name): ...", "globals()['X'] = 1", "x = ("]
)
def test_what_a_source_does_not_tell_is_left_to_the_run(source: str, elsewhere: Path) -> None:
    (elsewhere / "my_parts.py").write_text(source)
    assert own_part_fault("my_parts.X") is None
    assert own_part_fault("torch.nn.Nothing") is None
