import subprocess
import sys
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.task.tokenization import SPECIAL_TOKENS, learn_wordpiece, load_tokenizer, pad_id, unknown_id

TEXTS = [
    "Return the running event loop.",
    "Run the loop until it is stopped!",
    "returns a tuple",
    "北京大学的学生",
    "大学生活",
]


def test_learns_whole_words_and_pieces() -> None:
    tokenizer = learn_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True)

    assert tokenizer.encode("The LOOP").tokens == ["[CLS]", "the", "loop", "[SEP]"]
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("a", "the").type_ids == [0, 0, 0, 1, 1]
    assert pad_id(tokenizer) == 0
    assert unknown_id(tokenizer) == 1


def test_each_chinese_character_is_a_word() -> None:
    tokenizer = learn_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True)

    assert tokenizer.encode("大学").tokens == ["[CLS]", "大", "学", "[SEP]"]
    assert tokenizer.token_to_id("##学") is None


def test_characters_beyond_the_vocabulary_are_unknown() -> None:
    tokenizer = learn_wordpiece([TEXTS], vocab_size=30, lowercase=True)

    assert tokenizer.get_vocab_size() <= 30
    assert "[UNK]" in tokenizer.encode("京").tokens


def test_case_is_kept_on_request() -> None:
    tokenizer = learn_wordpiece([["Loop loop LOOP"] * 9], vocab_size=100, lowercase=False)

    assert tokenizer.encode("Loop loop LOOP").tokens == ["[CLS]", "Loop", "loop", "LOOP", "[SEP]"]


def test_every_process_learns_the_same_vocabulary(tmp_path: Path) -> None:
    script = (
        "from trainer.task.tokenization import learn_wordpiece\n"
        "texts = [''.join(chr(97 + (i * j) % 26) for j in range(1, 9)) + ' ' + chr(0x4e00 + i) for i in range(400)]\n"
        "print(learn_wordpiece([texts], vocab_size=600, lowercase=True).to_str())\n"
    )
    learnt = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, cwd=Path.cwd()).stdout
        for _ in range(3)
    }

    assert len(learnt) == 1


def test_a_given_tokenizer(tmp_path: Path) -> None:
    learnt = learn_wordpiece([TEXTS * 5], vocab_size=200, lowercase=True)
    learnt.enable_truncation(3)
    learnt.save(str(tmp_path / "tokenizer.json"))

    for path in (tmp_path, tmp_path / "tokenizer.json"):
        given = load_tokenizer(str(path))
        assert len(given.encode("the loop the loop").ids) == 6


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(ConfigError, match=r"tokenizer: not a tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match="tokenizer: no such file, got 'nowhere'"):
        load_tokenizer("nowhere")
