"""Parameter groups, layers and hidden matrices of the models of a job; optimizer and schedule from the config."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.jobs import TINY, working_in, write_data
from tests.test_conf import job_of
from trainer.builders.data import build_encoded, build_task
from trainer.builders.instantiate import instantiate
from trainer.builders.loss import build_loss
from trainer.builders.model import build_model
from trainer.builders.optimizer import build_optimizer, build_schedule
from trainer.config.groups import groups_in, own_folder
from trainer.optimizer.parameter_groups import hidden_matrix_names, layer_indices, make_parameter_groups, no_decay_names

FACTS: dict[str, Any] = {
    "vocab_size": 30,
    "num_outputs": 5,
    "max_length": 16,
    "image_channels": 3,
    "image_size": (8, 8),
}
NUM_LAYERS = {"text_encoder": 2, "vit": 6, "resnet": 9, "mlp": 2, "convnet": 4}
TRANSFORMERS = {"text_encoder", "vit"}
OWN = groups_in([own_folder()])
MATRICES = {"query_key_value", "attention_output", "feed_forward.0", "feed_forward.2"}


class Centers(nn.Module):
    """A loss with a vector for each class instead of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(4, 5).weight.detach().clone())


def modules_of(model: str, **facts: Any) -> nn.ModuleDict:
    made = instantiate("model", OWN.content("model", model), **(FACTS | facts))
    return nn.ModuleDict({"model": made} if facts.get("num_outputs", 5) else {"model": made, "loss": Centers()})


def test_each_block_is_a_layer_and_the_head_is_the_last() -> None:
    stems = {"text_encoder": "token_embedding", "vit": "patch_embedding", "resnet": "stem"}
    for model, num_layers in NUM_LAYERS.items():
        layers = layer_indices(modules_of(model))
        blocks = {name.split(".")[2] for name in layers if name.startswith("model.blocks.")}

        assert len(blocks) == num_layers
        for name, layer in layers.items():
            part, _, rest = name.removeprefix("model.").partition(".")
            if part == "blocks" and model in TRANSFORMERS | {"resnet"}:
                assert layer == int(rest.split(".")[0]) + 1
        assert layers["model.head.weight"] == num_layers + 1
        if model in stems:
            assert layers[f"model.{stems[model]}.weight"] == 0


def test_without_a_head_the_loss_is_the_last_layer() -> None:
    for model in ("vit", "resnet", "mlp", "convnet"):
        layers = layer_indices(modules_of(model, num_outputs=None))
        # A norm comes after the blocks of a transformer; in the other models nothing does.
        above = NUM_LAYERS[model] + (model in TRANSFORMERS)

        assert layers["loss.weight"] == max(layers.values()) == above


def test_hidden_matrices_of_a_transformer_are_in_its_blocks() -> None:
    for model, num_outputs in (("text_encoder", 5), ("vit", 5), ("vit", None)):
        hidden = hidden_matrix_names(modules_of(model, num_outputs=num_outputs))
        numbers = range(NUM_LAYERS[model])

        assert hidden == {f"model.blocks.{number}.{part}.weight" for number in numbers for part in MATRICES}


def test_hidden_matrices_of_other_models() -> None:
    assert hidden_matrix_names(modules_of("resnet")) == frozenset()
    assert len(hidden_matrix_names(modules_of("mlp"))) == 2
    assert len(hidden_matrix_names(modules_of("mlp", num_outputs=None))) == 2
    assert hidden_matrix_names(modules_of("linear")) == frozenset()


def test_layer_decay_and_overrides_of_a_transformer() -> None:
    modules = modules_of("text_encoder")
    groups = make_parameter_groups(
        modules.named_parameters(),
        lr=0.01,
        weight_decay=0.1,
        no_decay=no_decay_names(modules),
        layers=layer_indices(modules),
        layer_decay=0.5,
        overrides=[{"match": "head.*", "lr": 0.1}],
    )
    values = {name: (group["lr"], group["weight_decay"]) for group in groups for name, _ in group["params"]}

    assert values["model.token_embedding.weight"] == (0.00125, 0.0)
    assert values["model.blocks.0.query_key_value.weight"] == (0.0025, 0.1)
    assert values["model.blocks.1.query_key_value.bias"] == (0.005, 0.0)
    assert values["model.norm.weight"] == (0.01, 0.0)
    assert values["model.head.weight"] == (0.1, 0.1)
    assert len(groups) == len(set(values.values())) == 8


def test_biases_norms_and_embeddings_have_no_weight_decay(tmp_path: Path) -> None:
    job = job_of(*write_data(tmp_path), *TINY, "optimizer.weight_decay=0.5")
    task = build_task(job)
    with working_in(tmp_path):
        build_encoded(job, task, fitted=False)
    model = build_model(job, task, None, None)
    optimizer = build_optimizer(job, model, build_loss(job, task, torch.device("cpu")))
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}

    assert decay["model.head.weight"] == 0.5
    assert {decay[f"model.{name}"] for name in ("head.bias", "norm.weight", "token_embedding.weight")} == {0.0}
    assert decay.keys() == {f"model.{name}" for name, _ in model.named_parameters()}
    assert all(group["initial_lr"] == 0.001 for group in optimizer.param_groups)


@pytest.mark.parametrize(("warmup", "steps"), [("10%", 4), ("0.5ep", 4), ("3st", 3), ("6", 6)])
def test_warmup_is_a_duration(warmup: str, steps: int) -> None:
    schedule = build_schedule(job_of("scheduler=linear", f"scheduler.warmup={warmup}"), 8, 40)

    assert schedule(steps) == 1.0
    assert schedule(steps - 1) < 1.0
    assert schedule(40) == 0.0
