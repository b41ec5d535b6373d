"""A group that a job can do without: `prune`."""

from collections.abc import Callable
from typing import Any

import pytest

from trainer.config.help import verb_help
from trainer.config.lint import check_command
from trainer.config.policy import resume_config
from trainer.config.stored import job_from_config
from trainer.errors import ConfigError

Composed = Callable[..., tuple[Any, dict[str, Any]]]


@pytest.mark.parametrize("verb", ["train", "export"])
def test_null_unless_an_option_is_chosen(verb: str, composed: Composed) -> None:
    assert composed(verb)[0].prune is None
    assert composed(verb, "~prune")[0].prune is None
    chosen = composed(verb, "prune=ln", "prune.amount=2", "prune.targets=[blocks.*]")[0].prune

    assert (chosen["_target_"], chosen["amount"], chosen["n"], chosen["targets"]) == (
        *("trainer.prune.ln.ln", 2, 2),
        ["blocks.*"],
    )


@pytest.mark.parametrize("verb", ["train", "export"])
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("prune=null", "prune: must be the name of an option, got None. ~prune leaves it out."),
        ("+prune=l1", "prune: is there already. Leave out the +: prune=l1."),
        ("prune.amount=0.3", "prune.amount: no prune is chosen, got 0.3. Add prune=global_magnitude or prune=l1 or"),
        ("prune={amount: 0.3}", "prune._target_: must be the dotted name of a class or function, got None. One of "),
        ("prune=l1,ln", "prune: several values make a sweep"),
    ],
)
def test_what_is_wrong_with_the_choice(verb: str, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(verb, [override])
    assert caught.value.messages[0].startswith(told)


def test_a_sweep_over_its_options_is_checked() -> None:
    assert check_command("train", ["-m", "prune=l1,random", "prune.amount=0.1,0.5"]).hydra_argv
    with pytest.raises(ConfigError, match=r"prune\.amount: must be a share.* got 1\.5"):
        check_command("train", ["-m", "prune=l1,random", "prune.amount=0.1,1.5"])


def test_help_says_that_there_is_none_and_the_keys_of_a_chosen_one() -> None:
    assert "\nprune=null: weights that are 0 from the start" in verb_help("train", [])
    assert "prune.amount" not in verb_help("train", [])
    chosen = verb_help("train", ["prune=ln"])

    assert "\nprune=ln: " in chosen
    assert chosen.count("prune.targets") == chosen.count("prune.dim") == 1


def test_a_stored_configuration_from_before_there_was_the_group(composed: Composed) -> None:
    _, values = composed("train")
    older = {key: value for key, value in values.items() if key != "prune"}

    assert job_from_config(older).prune is None


def test_a_resumed_run_neither_gains_nor_loses_it(composed: Composed) -> None:
    _, without = composed("train")
    _, pruned = composed("train", "prune=l1")
    for stored, current in ((without, pruned), (pruned, without)):
        with pytest.raises(ConfigError, match="prune: a resumed run keeps it"):
            resume_config(stored, current)
