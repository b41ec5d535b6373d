import pytest

from trainer.config.overrides import parse_overrides, quoted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("data.text=正文", "正文"),
        ("data.train=[数据/一.csv,b.csv]", ["数据/一.csv", "b.csv"]),
        ("data.label=größe der stadt", "größe der stadt"),
        ("data.label='类别'", "类别"),
        ("+x={a: 一, b: 2}", {"a": "一", "b": 2}),
        ("optimizer.lr=1e-3", 0.001),
    ],
)
def test_words_beyond_ascii_need_no_quotes(text: str, value: object) -> None:
    (override,), problems = parse_overrides([quoted(text)])

    assert problems == []
    assert override.value() == value
