"""The tokens of a language model."""

from functools import cache

from trainer.export.standalone.tokens import tokenizer


@cache
def vocabulary(size: int) -> list[str]:
    """The tokens by their ids; a number stands for one without a name."""
    return [tokenizer().id_to_token(number) or str(number) for number in range(size)]
