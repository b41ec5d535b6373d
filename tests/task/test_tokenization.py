import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from trainer.errors import ConfigError
from trainer.task.texts import Texts
from trainer.task.tokenization import SPECIAL_TOKENS, _alphabet, load_tokenizer, pad_id, train_wordpiece, unknown_id

TEXTS = [
    "Return the running event loop.",
    "Run the loop until it is stopped!",
    "returns a tuple",
    "北京大学的学生",
    "大学生活",
]


def test_vocabulary_contains_words_and_pieces() -> None:
    tokenizer = train_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True)

    assert tokenizer.encode("The LOOP").tokens == ["[CLS]", "the", "loop", "[SEP]"]
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("a", "the").type_ids == [0, 0, 0, 1, 1]
    assert pad_id(tokenizer) == 0
    assert unknown_id(tokenizer) == 1


def test_each_chinese_character_is_a_word() -> None:
    tokenizer = train_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True)

    assert tokenizer.encode("大学").tokens == ["[CLS]", "大", "学", "[SEP]"]
    assert tokenizer.token_to_id("##学") is None


def test_characters_beyond_the_vocabulary_are_unknown() -> None:
    tokenizer = train_wordpiece([TEXTS], vocab_size=30, lowercase=True)

    assert tokenizer.get_vocab_size() <= 30
    assert "[UNK]" in tokenizer.encode("京").tokens


def test_case_is_kept_without_lowercase() -> None:
    tokenizer = train_wordpiece([["Loop loop LOOP"] * 9], vocab_size=100, lowercase=False)

    assert tokenizer.encode("Loop loop LOOP").tokens == ["[CLS]", "Loop", "loop", "LOOP", "[SEP]"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_vocabulary_is_that_of_the_rules_of_the_tokenizer(lowercase: bool) -> None:
    characters = [*map(chr, range(0x180)), *"\u017fKİΣςßǅ\u0301\u200b\u2028\u3000、大ｆｉﬁ𝕏🙂"]
    texts = [f"The{one}{two}Loop {two}x{one}" for one in characters for two in "a.\u0301大\x0b"]
    batches = [texts[start : start + 100] for start in range(0, len(texts), 100)]
    trained = train_wordpiece(batches, vocab_size=900, lowercase=lowercase)

    words = [
        word
        for text in texts
        for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str(text))
    ]
    alphabet, continuing = _alphabet(Counter(words), limit=(900 - len(SPECIAL_TOKENS)) // 2)
    special = [*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in continuing)]
    reference = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    reference.normalizer, reference.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    rules = {"limit_alphabet": len(alphabet), "initial_alphabet": alphabet, "show_progress": False}
    reference.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, **rules))
    assert trained.get_vocab() == reference.get_vocab()


def test_every_process_trains_the_same_vocabulary(tmp_path: Path) -> None:
    script = (
        "from trainer.task.tokenization import train_wordpiece\n"
        "texts = [''.join(chr(97 + (i * j) % 26) for j in range(1, 9)) + ' ' + chr(0x4e00 + i) for i in range(400)]\n"
        "print(train_wordpiece([texts], vocab_size=600, lowercase=True).to_str())\n"
    )
    vocabularies = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=Path.cwd()).stdout
        for _ in range(3)
    }

    assert len(vocabularies) == 1


def test_user_tokenizer_is_loaded_without_truncation(tmp_path: Path) -> None:
    trained = train_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True)
    trained.enable_truncation(3)
    trained.save(str(tmp_path / "tokenizer.json"))

    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(path))
        assert len(loaded.encode("the loop the loop").ids) == 6


def test_invalid_or_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(ConfigError, match=r"tokenizer: is not a tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match=r"tokenizer: no such file, got 'nowhere/of/such\.json'"):
        load_tokenizer("nowhere/of/such.json")


def test_hub_name_without_a_network_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer("bert-base-cased")

    assert "no such file, and the hub cannot be reached, got 'bert-base-cased'" in str(caught.value)
    assert "hf download" in str(caught.value)


def test_hub_name_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models--owner--name"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    (model / "snapshots" / "abc").mkdir(parents=True)
    train_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True).save(str(model / "snapshots/abc/tokenizer.json"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    assert load_tokenizer("owner/name").encode("the loop").tokens == ["[CLS]", "the", "loop", "[SEP]"]


def test_folder_with_vocab_txt_is_converted(tmp_path: Path) -> None:
    words = [*SPECIAL_TOKENS, "the", "loop", "##s"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    tokenizer = load_tokenizer(str(tmp_path))

    assert tokenizer.encode("The loops", "the").tokens == ["[CLS]", "the", "loop", "##s", "[SEP]", "the", "[SEP]"]
    assert tokenizer.encode("The loops", "the").ids == [2, 5, 6, 7, 3, 5, 3]
    assert tokenizer.get_vocab_size() == len(words)


def test_folder_with_merges_is_converted(tmp_path: Path) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.train_from_iterator([text.lower() for text in TEXTS * 5], trainer)
    trained.model.save(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = load_tokenizer(str(tmp_path))

    assert tokenizer.encode("run the loop").tokens == trained.encode("run the loop").tokens
    assert unknown_id(tokenizer) is None


def test_folder_without_a_vocabulary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer: has no tokenizer\.json, and its files cannot be converted"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    # The library itself makes one of five special tokens, to which every word is unknown.
    with pytest.raises(ConfigError, match="tokenizer: has no vocabulary"):
        load_tokenizer(str(tmp_path))


def test_missing_tokenizer_has_no_fingerprint_until_state_is_loaded(tmp_path: Path) -> None:
    train_wordpiece([["a text"]], vocab_size=100, lowercase=True).save(str(tmp_path / "tokenizer.json"))
    there = Texts(8, 100, str(tmp_path), lowercase=True)
    there.fit_texts([])
    (tmp_path / "tokenizer.json").unlink()
    gone = Texts(8, 100, str(tmp_path), lowercase=True)

    with pytest.raises(ConfigError, match=r"^task\.tokenizer: "):
        gone.fingerprint_parts()
    gone.load_state_dict(there.state_dict())
    assert gone.fingerprint_parts() == there.fingerprint_parts()
