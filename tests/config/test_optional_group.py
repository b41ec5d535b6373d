"""The optional group `prune`, whose part may be null."""

from collections.abc import Callable
from typing import Any

import pytest

from trainer.config.command import check_command
from trainer.config.help import verb_help
from trainer.config.resume import resume_config
from trainer.config.stored import job_from_config
from trainer.errors import ConfigError

Composed = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.mark.parametrize("verb", ["train", "export"])
def test_prune_is_null_unless_an_option_is_chosen(verb: str, composed: Composed) -> None:
    assert composed(verb)[0].prune is None
    assert composed(verb, "~prune")[0].prune is None
    chosen = composed(verb, "prune=ln", "prune.amount=2", "prune.targets=[blocks.*]")[0].prune

    assert (chosen["_target_"], chosen["amount"], chosen["n"], chosen["targets"]) == (
        *("trainer.prune.ln.ln", 2, 2),
        ["blocks.*"],
    )


@pytest.mark.parametrize("verb", ["train", "export"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune=null", "prune: must be the name of an option, got null. Delete it with ~prune."),
        ("+prune=l1", "prune: already exists. Leave out the +: prune=l1."),
        ("prune.amount=0.3", "prune.amount: no prune is chosen, got 0.3. Add prune=global_magnitude or prune=l1 or"),
        ("prune.dim=1", "prune.dim: no prune is chosen, got 1. Add prune=ln."),
        (
            "prune={amount: 0.3}",
            "prune._target_: must be the dotted name of a class or function",
        ),
        ("prune=l1,ln", "prune: several values need a sweep"),
    ],
)
def test_errors_of_the_choice(verb: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(verb, [override])
    assert caught.value.messages[0].startswith(message)


def test_a_sweep_over_its_options_is_checked() -> None:
    assert check_command("train", ["-m", "prune=l1,random", "prune.amount=0.1,0.5"]).line.hydra_argv()
    with pytest.raises(ConfigError, match=r"prune\.amount: must be at least 0 and less than 1, got 1\.5"):
        check_command("train", ["-m", "prune=l1,random", "prune.amount=0.1,1.5"])


def test_help_shows_null_or_the_keys_of_a_chosen_option() -> None:
    assert "\nprune=null: weights fixed at 0 during training" in verb_help("train", [])
    assert "prune.amount" not in verb_help("train", [])
    chosen = verb_help("train", ["prune=ln"])

    assert "\nprune=ln: " in chosen
    assert chosen.count("prune.targets") == chosen.count("prune.dim") == 1


def test_stored_config_older_than_the_group_gets_null(composed: Composed) -> None:
    _, values = composed("train")
    older = {key: value for key, value in values.items() if key != "prune"}

    assert job_from_config(older).prune is None


def test_resumed_run_keeps_its_option(composed: Composed) -> None:
    _, without = composed("train")
    _, pruned = composed("train", "prune=l1")
    for stored, current in ((without, pruned), (pruned, without)):
        with pytest.raises(ConfigError, match="prune: cannot change when a run is resumed"):
            resume_config(stored, current)
