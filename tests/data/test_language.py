import pytest

from trainer.data.language import count_tokens, guess_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("这家店的味道非常好", "Chinese"),
        ("とても良かった。また行きたい", "Japanese"),
        ("오늘 경기는 정말 좋았다", "Korean"),
        ("the food was good and it is not far for us", "English"),
        ("das Essen war gut und es ist nicht weit für uns", "German"),
        ("How do I clean my kettle? How do I store my lamp?", "English"),
        ("do clean do store", ""),
        ("apple pear plum 17", ""),
        ("", ""),
    ],
)
def test_language_is_guessed_from_script_and_frequent_words(text: str, language: str) -> None:
    assert guess_language([text]) == language


def test_tokens_are_words_and_chinese_characters() -> None:
    assert count_tokens("two words") == 2
    assert count_tokens("味道 very 好") == 4
