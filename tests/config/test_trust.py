import pytest

from trainer.config.trust import trusted


@pytest.mark.parametrize(
    "target",
    [
        "trainer.loss.focal.Focal",
        "trainer.scheduler.cosine.cosine",
        "torch.optim.Adam",
        "torch.optim.adam.Adam",
        "torch.nn.Linear",
        "transformers.BertModel",
        "mine.Loss",
    ],
)
def test_what_may_be_named(target: str) -> None:
    assert trusted({"loss": {"_target_": target}}, ["mine"]) == []


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "evil.Loss",
        "minex.Loss",
        "trainer",
        "trainerx.Loss",
        "trainer.loss.focal.torch.load",
        "trainer.loss.focal.F",
        "trainer.config.catalogue.find_spec",
        "torch.load",
        "torch.optim.adam.torch.load",
        "torch.nn.functional.handle_torch_function",
        "torch.hub.load",
        "transformers.utils.os.system",
        "transformers.utils.import_utils.subprocess.Popen",
        "transformers.AutoModel.from_pretrained",
        "transformers.",
    ],
)
def test_what_may_not(target: str) -> None:
    (message,) = trusted({"model": {"parts": [{"_target_": target}]}}, ["mine"])
    assert message.startswith("model.parts.0._target_: a checkpoint may name")
    assert f"got {target!r}. If you trust it: trust=[{target.split('.')[0]}]" in message
