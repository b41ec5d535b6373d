from pathlib import Path

import pytest

from trainer.config import jobs, schema
from trainer.config.arguments import quoted, split_arguments
from trainer.config.overrides import parse_overrides


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


@pytest.mark.parametrize(
    ("verb", "argv", "values"),
    [
        ("eval", ["runs/a b", "split=test"], {"run": "runs/a b", "split": "test"}),
        ("diff", ["a", "-z=1", "b"], {"left": "a", "right": "b"}),
        ("report", ["a", "b", "c,d"], {"run": "a", "beside": ["b", "c,d"]}),
        ("predict", ["a", "x = [y], 'z'"], {"run": "a", "input": "x = [y], 'z'"}),
        ("predict", ["a text"], {"input": "a text"}),
        ("predict", ["folder", "top=3"], {"run": "folder", "top": 3}),
        ("predict", ["~/folder", "~ five"], {"run": "~/folder", "input": "~ five"}),
        ("predict", ["run=a", "folder"], {"run": "a", "input": "folder"}),
        ("diff", ["b", "left=a"], {"left": "a", "right": "b"}),
        ("generate", ["run=a", "Return the"], {"run": "a", "prompt": "Return the"}),
        ("generate", ["folder", "=1"], {"run": "folder", "prompt": "=1"}),
    ],
)
def test_runs_and_texts_need_no_key(
    verb: str, argv: list[str], values: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    arguments, problems = split_arguments(argv, schema.texts(jobs.JOBS[verb]), jobs.POSITIONS[verb])
    parsed, unreadable = parse_overrides(arguments.overrides)

    assert unreadable == []
    assert {item.key_or_group: item.value() for item in parsed} == values
    assert len(problems) == ("-z=1" in argv)


@pytest.mark.parametrize(("verb", "argv", "key"), [("diff", ["a", "b", "c"], "c"), ("eval", ["run=a", "b"], "b")])
def test_each_value_has_one_position(verb: str, argv: list[str], key: str) -> None:
    _, (problem,) = split_arguments(argv, positions=jobs.POSITIONS[verb])

    assert problem.startswith(f"{key}: ")
