import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from trainer.errors import ConfigError
from trainer.task.language_modeling import most_likely_tokens, require_special_token
from trainer.task.texts import Texts
from trainer.task.tokenization import find_special_id, special_ids, train_wordpiece


def trained_tokenizer() -> Tokenizer:
    return train_wordpiece([["a b c d e"] * 9], vocab_size=100, lowercase=True)


def test_first_known_special_token_is_found() -> None:
    assert find_special_id(trained_tokenizer(), ("<mask>", "[MASK]", "[SEP]")) == 4
    assert find_special_id(trained_tokenizer(), ("<mask>",)) is None


def test_special_ids_include_the_unknown_token() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["word"])

    assert special_ids(tokenizer).tolist() == [1, 3]
    assert special_ids(trained_tokenizer()).tolist() == [0, 1, 2, 3, 4]


def test_trained_vocabulary_needs_no_special_token() -> None:
    require_special_token(Texts(8, 100, None, True), ("<mask>",), "mask token")


def test_user_tokenizer_without_the_special_token_is_an_error(tmp_path: object) -> None:
    trained_tokenizer().save(f"{tmp_path}/tokenizer.json")
    texts = Texts(8, 100, f"{tmp_path}/tokenizer.json", True)
    require_special_token(texts, ("[MASK]",), "mask token")

    with pytest.raises(ConfigError, match=r"tokenizer: has no mask token \(<mask>\)\. Name another one, or use null"):
        require_special_token(texts, ("<mask>",), "mask token")


def test_most_likely_tokens_of_extreme_and_half_logits() -> None:
    tokenizer = trained_tokenizer()
    size = tokenizer.get_vocab_size()
    output = torch.zeros(3, size)
    output[0, 5], output[1, 6] = 6e4, 1.0
    for logits in (output, output.half()):
        sure, likely, even = most_likely_tokens(logits, tokenizer, 2)
        assert sure == [(tokenizer.id_to_token(5), 1.0), (tokenizer.id_to_token(0), 0.0)]
        assert likely[0] == (tokenizer.id_to_token(6), pytest.approx(np.e / (np.e + size - 1), abs=1e-6))
        assert even == [(tokenizer.id_to_token(number), pytest.approx(1 / size, abs=1e-6)) for number in (0, 1)]
