"""`trainer init`: what it proposes for each kind of data, and that the commands it prints work as they are printed."""

# ruff: noqa: E501  a case of the tables is a line

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.support.jobs import TINY, WORDS, events, rows, working_in, write_csv
from trainer.cli import main
from trainer.commands.init_parts import PARTS
from trainer.commands.init_proposal import length_settings
from trainer.config.command import check_command
from trainer.serve.model import ServedModel

ROWS = rows(120)
TEXTS = [text for text, _ in ROWS]
TAGGED = [(text.split(), ["B-tool" if word in WORDS["tool"] else "O" for word in text.split()]) for text in TEXTS]


DIALOGS = [
    {"instruction": f"Reverse {n}.", "input": text if n % 3 else "", "output": text[::-1]}
    for n, text in enumerate(TEXTS)
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with working_in(tmp_path):
        yield tmp_path


def table(header: str, lines: list[list[object]], separator: str = ",") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=separator).writerows([header.split(), *lines])

    return write


def json_lines(*objects: dict[str, object]) -> Callable[[Path], None]:
    return text("".join(f"{json.dumps(item)}\n" for item in objects))


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content if isinstance(content, bytes) else content.encode()), None)[1]


def parquet(path: Path) -> None:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist([{"text": text, "label": label} for text, label in ROWS]), path)


def images(sizes: tuple[int, ...], classes: tuple[str, ...] = ("cat", "dog")) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        generator = np.random.default_rng(0)
        for name in classes:
            (path / name).mkdir(parents=True)
            for number in range(30):
                pixels = generator.integers(0, 256, (16, sizes[number % len(sizes)]), dtype=np.uint8)
                Image.fromarray(pixels).save(path / name / f"{number}.png")

    return write


def split_files(path: Path) -> None:
    path.mkdir()
    for name, lines in {"train": ROWS[:80], "dev": ROWS[80:100], "test": ROWS[100:]}.items():
        table("text label", [list(row) for row in lines])(path / f"{name}.csv")


def genres(separator: str) -> list[list[object]]:
    random = Random(0)
    return [[text, separator.join(sorted({label, random.choice(list(WORDS))}))] for text, label in ROWS]


def passengers() -> list[list[object]]:
    random = Random(0)
    return [
        [
            n,
            random.randint(0, 1),
            random.choice("123"),
            f"Mr. Smith the {n}th",
            random.choice(["m", "f"]),
            n / 7,
            "k",
            n,
        ]
        for n in range(120)
    ]


CASES: dict[str, tuple[Callable[[Path], None], str, dict[str, object]]] = {
    "a.csv": (table("id content kind", [[n, *row] for n, row in enumerate(ROWS)]), "text_classification", {"text": "content", "label": "kind"}),
    "semicolon.csv": (table("text label", [list(row) for row in ROWS], ";"), "text_classification", {"separator": ";"}),
    "tabs.csv": (table("text label", [list(row) for row in ROWS], "\t"), "text_classification", {"separator": "\\t"}),
    "a.tsv": (table("text label", [list(row) for row in ROWS], "\t"), "text_classification", {"label": "label"}),
    "a.jsonl": (json_lines(*({"body": text, "stars": len(label) % 3} for text, label in ROWS)), "text_classification", {"text": "body", "label": "stars"}),
    "a.parquet": (parquet, "text_classification", {"label": "label"}),
    "amounts.csv": (table("body kind bytes", [[text, label, n * 1_000_003] for n, (text, label) in enumerate(ROWS)]), "text_classification", {"text": "body", "label": "kind"}),
    "price.csv": (table("review price", [[text, len(text) * 1.37] for text in TEXTS]), "regression", {"columns": {"value": "price"}}),
    "genres.csv": (table("text genres", genres("|")), "multilabel_classification", {"columns": {"labels": "genres"}}),
    "commas.csv": (table("text genres", genres(", ")), "multilabel_classification", {"list_separator": ","}),
    "lists.jsonl": (json_lines(*({"text": text, "tags": [label, "x"]} for text, label in ROWS)), "multilabel_classification", {"columns": {"labels": "tags"}}),
    "pairs.csv": (table("question answer", [[text, f"about {text[:20]} and so on"] for text in TEXTS]), "sentence_embedding", {"text": "question", "columns": {"positive": "answer"}}),
    "triplets.csv": (table("anchor positive negative", [[text, text[:9], text[::-1]] for text in TEXTS]), "sentence_embedding", {"columns": {"positive": "positive", "negative": "negative"}}),
    "scored.csv": (table("a b score", [[text, text[::-1], n / 7] for n, text in enumerate(TEXTS)]), "sentence_embedding", {"columns": {"text_pair": "b", "score": "score"}}),
    "same.csv": (table("a b label", [[text, other, n % 2] for n, (text, other) in enumerate(zip(TEXTS, TEXTS[::-1], strict=True))]), "pair_classification", {"columns": {"text_pair": "b"}, "label": "label"}),
    "passengers.csv": (table("Id Survived Class Name Sex Fare Same Copy", passengers()), "tabular_classification", {"label": "Survived", "columns": {"features": ["Class", "Sex", "Fare"]}}),
    "numbers.csv": (table("a day city y", [[n % 13, f"2020-01-{n % 28 + 1:02}", "xyz"[n % 3], n * 0.5 + n % 7] for n in range(120)]), "tabular_regression", {"columns": {"value": "y", "features": ["a", "city"]}}),
    "leak.csv": (table("a b answer label", [[n % 13, n % 7, ["no", "yes"][n % 2], "01"[n % 2]] for n in range(120)]), "tabular_classification", {"columns": {"features": ["a", "b"]}}),
    "spans.jsonl": (json_lines(*({"text": text, "entities": [{"start_idx": 0, "end_idx": len(text.split()[0]), "type": label}]} for text, label in ROWS)), "span_classification", {"text": "text", "columns": {"spans": "entities"}}),
    "inclusive.jsonl": (json_lines(*({"text": text, "spans": [[0, len(text.split()[0]) - 1, label]]} for text, label in ROWS)), "span_classification", {"columns": {"spans": "spans"}}),
    "lists_of_words.jsonl": (json_lines(*({"tokens": words, "ner": tags} for words, tags in TAGGED)), "token_classification", {"columns": {"words": "tokens", "tags": "ner"}}),
    "words.csv": (table("words tags", [[" ".join(words), " ".join(tags)] for words, tags in TAGGED]), "token_classification", {"list_separator": " "}),
    "a.conll": (text("\n".join("".join(f"{word} {tag}\n" for word, tag in zip(*pair, strict=True)) for pair in TAGGED)), "token_classification", {"train": "a.conll"}),
    "a.conllu": (text("\n".join(f"# {n}\n" + "".join(f"{i}\t{word}\t_\t{tag}\t_\n" for i, (word, tag) in enumerate(zip(*pair, strict=True))) for n, pair in enumerate(TAGGED))), "token_classification", {"tag": 3}),
    "lines.txt": (text("\n".join(TEXTS)), "causal_lm", {"documents": "line"}),
    "blocks.txt": (text("\n\n".join(f"{text}\nand\nmore" for text in TEXTS)), "causal_lm", {"documents": "blank"}),
    "texts.csv": (table("text", [[text] for text in TEXTS]), "causal_lm", {"text": "text"}),
    "chat.jsonl": (json_lines(*({"id": n, "messages": [{"role": "user", "content": text}]} for n, text in enumerate(TEXTS))), "causal_lm", {"text": "messages"}),
    "chat.csv": (table("conversations source", [[json.dumps([{"from": "human", "value": text}]), "ab"[n % 2]] for n, text in enumerate(TEXTS)]), "text_classification", {"text": "conversations"}),
    "alpaca.jsonl": (json_lines(*DIALOGS), "causal_lm", {"text": ["instruction", "input", "output"]}),
    "prompts.csv": (table("id Completion Prompt", [[n, f"it is {n}", text] for n, text in enumerate(TEXTS)]), "causal_lm", {"text": ["Prompt", "Completion"]}),
    "sentiment.csv": (table("prompt completion", [[text, label] for text, label in ROWS]), "text_classification", {"text": "prompt", "label": "completion"}),
    "dialogs.jsonl": (json_lines(*({"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": text[::-1]}]} for text in TEXTS)), "causal_lm", {"text": ["prompt", "completion"]}),
    "chinese.csv": (table("编号 评论内容 评价 评分", [[n, text, f"{label} " if n == 9 else label, n * 0.7 % 5] for n, (text, label) in enumerate(ROWS)]), "text_classification", {"text": "评论内容", "label": "评价"}),
    "photos": (images((16,)), "image_classification", {"root": "photos"}),
    "sizes": (images((16, 40, 70)), "image_classification", {"root": "sizes"}),
    "splits": (split_files, "text_classification", {"train": "splits/train.csv", "validation": "splits/dev.csv", "test": "splits/test.csv"}),
}  # fmt: skip
"""The data, the task that is proposed for it, and keys of the proposed `data`."""


def printed_commands(output: str) -> list[list[str]]:
    """Return the commands after `next:`, without the program's name."""
    return [line.split()[1:] for line in output.partition("next:\n")[2].splitlines()]


def propose(name: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Write the data of a case, let `init` look at it, and return the commands that it prints."""
    write, task, expected = CASES[name]
    write(Path(name))
    assert main(["init", name]) == 0, name
    output = capsys.readouterr().out
    assert f"(task={task})" in output, output
    file = Path(output.partition("wrote ")[2].splitlines()[0])
    data = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
    assert {key: data.get(key) for key in expected} == expected, name
    return printed_commands(output)


def test_kind_of_data_decides_the_proposal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proposed_tasks = set()
    for name, (_, task, _) in CASES.items():
        _, (verb, *overrides) = propose(name, capsys)
        if task not in proposed_tasks:  # test_proposal_trains carries out all of them
            check_command(verb, overrides)
        proposed_tasks.add(task)
        for written in folder.glob("conf/experiment/*.yaml"):
            written.unlink()


def test_the_end_of_spans_is_seen_in_the_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, span_end in {"spans.jsonl": "exclusive", "inclusive.jsonl": "inclusive"}.items():
        _, (verb, *overrides) = propose(name, capsys)
        (written,) = folder.glob("conf/experiment/*.yaml")
        assert yaml.safe_load(written.read_text(encoding="utf-8"))["task"]["span_end"] == span_end
        check_command(verb, overrides)
        written.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_proposal_trains(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, train = propose(name, capsys)
    options = ["train.duration=2", "export.formats=[]", "logger.console=none", "logger.tensorboard=false"]
    assert main([*train, *options, "device=cpu", "run.dir=run"]) == 0
    assert events(folder / "run", "end")[-1]["step"] == 2


def test_texts_with_labels_train_with_the_printed_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, train = propose("a.csv", capsys)
    assert (plan, train) == (["plan", "experiment=a"], ["train", "experiment=a"])
    assert main([*train, *TINY, "run.dir=run", "train.duration=2"]) == 0
    assert events(folder / "run", "end")[-1]["step"] == 2


@pytest.mark.slow
def test_prompts_and_answers_are_one_text_wherever_they_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, train = propose("alpaca.jsonl", capsys)
    assert "and are left out" not in capsys.readouterr().out
    small = ["train.duration=2", "model.depth=1", "model.dim=16", "model.heads=2", "task.vocab_size=200"]
    plain = ["logger.console=none", "logger.tensorboard=false", "device=cpu", "run.dir=run", "export.formats=[onnx]"]
    assert main([*train, *small, *plain]) == 0
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in DIALOGS[:3]), encoding="utf-8")
    assert main(["predict", "run=run", "input=rows.jsonl", "output=predicted.jsonl"]) == 0
    predicted = [json.loads(line) for line in (folder / "predicted.jsonl").read_text("utf-8").splitlines()]
    text = f"instruction: Reverse 0.\noutput: {TEXTS[0][::-1]}"
    served = ServedModel(folder / "run" / "export")
    answers = served.answer([served.parse(row) for row in [*DIALOGS[:3], text]], 5)
    assert answers[3] == answers[0]
    for answer, row in zip(answers, predicted, strict=False):
        assert answer["perplexity"] == pytest.approx(row["perplexity"], rel=1e-4)
    assert [column["name"] for column in served.describe()["columns"]] == ["instruction", "input", "output"]


def test_columns_can_be_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table("title body kind stars", [[text[:9], text, label, n % 3] for n, (text, label) in enumerate(ROWS)])(
        Path("a.csv")
    )
    for options, summary in {
        (): "Predict stars (3 classes) from body",
        ("target=kind",): "Predict kind (3 classes) from body",
        ("text=title", "target=kind"): "Predict kind (3 classes) from title",
    }.items():
        assert main(["init", "a.csv", "force=true", *options]) == 0
        assert summary in capsys.readouterr().out
    for name, remedy in {
        "kinds": "Did you mean kind?",
        "STARS": "Did you mean stars?",
        "x": "Its columns are title, body",
    }.items():
        assert main(["init", "a.csv", "force=true", f"target={name}"]) == 6
        assert f"target: is no column of a.csv, got {name!r}. {remedy}" in capsys.readouterr().err


def test_other_columns_to_predict_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[list[object]] = [[text, label, n * 1_000_003] for n, (text, label) in enumerate(ROWS)]
    table("body kind bytes", lines)(Path("a.csv"))
    for options, shown in {(): True, ("target=kind",): False, ("target=bytes",): False}.items():
        assert main(["init", "a.csv", "force=true", *options]) == 0
        output = capsys.readouterr().out
        assert ("to predict another column: target=bytes\n" in output) is shown, output
    assert "from 0 to 119,000,357, 120 different" in output
    assert "Predict the number bytes from body" in output


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty.csv": (text(""), "empty.csv: is empty"),
    "header.csv": (text("text,label\n"), "header.csv: has no rows"),
    "headless.csv": (text("a good film,1\n" * 30), "Begin the file with a line of names, such as column_1,column_2"),
    "few.csv": (text("text,label\na,b\nc,d\n"), "few.csv: has only 2 rows. Collect at least 10"),
    "one_class.csv": (table("text label", [[text, "x"] for text in TEXTS]), "column 'label' has one class only"),
    "ids.csv": (table("id day", [[n, f"2020-01-{n % 28 + 1:02}"] for n in range(60)]), "has no texts to read"),
    "one_number.csv": (table("y", [[n * 1.5] for n in range(60)]), "has no texts to read"),
    "latin.csv": (text(b"text,label\n" + "caf\xe9,x\n".encode("cp1252") * 20), "iconv -f WINDOWS-1252 -t UTF-8"),
    "utf16.csv": (text("text,label\na,b\n".encode("utf-16")), "iconv -f UTF-16 -t UTF-8"),
    "mixed.csv": (text("text,label\n" + "a b,x\n" * 20 + "c,d,e\n"), "line 22: expected 2 cells as in the header"),
    "gbk.csv": (text("text,label\n今天的比赛,好\n".encode("gbk")), "iconv -f GB18030 -t UTF-8"),
    "tools.jsonl": (json_lines(*({"messages": [{"role": "user", "content": None}]} for text in TEXTS)), "messages (other)"),
    "broken.jsonl": (text('{"text": "a"}\n{"text"\n'), "broken.jsonl, line 2: broken JSON"),
    "empty.txt": (text("\n\n"), "empty.txt: is empty"),
    "short.txt": (text("one line"), "Write one document per line"),
    "a.xlsx": (text("x"), "a.xlsx: unsupported file format"),
    "nothing": (lambda path: path.mkdir(), "Name a file, or a folder of images as nothing/<class>/<file>"),
    "flat": (lambda path: images((16,), (".",))(path), "Move them into folders: flat/<class>/<file>"),
    "single": (images((16,), ("cat",)), "Add a folder for each other class"),
    "gone.csv": (lambda path: None, "path: no such file or folder, got 'gone.csv'"),
    "latine.csv": (lambda path: None, "got 'latine.csv'. Did you mean latin.csv?"),
}  # fmt: skip
"""Data that cannot be used, and a part of the message."""


def test_odd_data_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (write, message) in ODD.items():
        write(Path(name))
        assert main(["init", name]) == 6, name
        assert message in capsys.readouterr().err, name
    assert not Path("conf").exists()


def test_target_that_no_task_predicts_is_one_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [[f"${n}.5" if n % 9 else "n/a", f"2020-01-{n % 28 + 1:02}", f"{n} is odd", n % 3] for n in range(60)]
    table("spent day note kind", lines)(Path("odd.csv"))
    for target, problem in {
        "spent": "has texts such as 'n/a' among its numbers",
        "day": "has dates such as '2020-01-01'",
        "note": "has 60 different texts in 60 rows",
    }.items():
        assert main(["init", "odd.csv", f"target={target}"]) == 6
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"target: {problem}, got {target!r}. Write classes that repeat, or numbers")
        assert error.endswith(", or choose another column: kind.")


def test_all_broken_images_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images((16,))(Path("photos"))
    for name in ("cat/3.png", "dog/8.png"):
        Path("photos", name).write_bytes(b"no image")
    assert main(["init", "photos"]) == 6
    errors = capsys.readouterr().err.splitlines()
    assert [error.partition(":")[0] for error in errors] == ["photos/cat/3.png", "photos/dog/8.png"]


@pytest.mark.parametrize(
    ("num_rows", "is_whole", "expected"),
    [
        (50, True, {"duration": "30ep", "batch_size": 8}),
        (200, True, {"duration": "30ep", "patience": "20ep", "batch_size": 16}),
        (2_000, True, {"duration": "16ep", "patience": "4ep"}),
        (20_000, True, {"duration": "3ep"}),
        (80_000, True, {"duration": "2ep", "eval_every": 500}),
        (100_000, False, {"duration": "1ep", "eval_every": 500}),
    ],
)
def test_a_run_is_as_long_as_its_rows_need(num_rows: int, is_whole: bool, expected: dict[str, object]) -> None:
    settings = length_settings(num_rows, is_whole=is_whole)
    assert {setting.key.removeprefix("train."): setting.value for setting in settings} == expected


def test_odd_columns_are_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [[n, n % 7, "" if n % 9 else "-", n % 4, "ab"[n % 2] if n else "rare"] for n in range(90)]
    table("a b b c label", lines)(Path("odd.csv"))
    assert main(["init", "odd.csv"]) == 0
    output = capsys.readouterr().out
    assert "note: the columns named 'b' share a name and are left out" in output
    assert "note: 1 of 3 classes has fewer than 5 rows, such as rare." in output
    table("text label", [[text, label + " " * (n < 5)] for n, (text, label) in enumerate(ROWS)])(Path("spaces.csv"))
    assert main(["init", "spaces.csv"]) == 0
    assert re.search(r"  label +class .*'\w+ ' \d", capsys.readouterr().out)
    table("text label", [[text, label] for text, label in ROWS] + [["a", "spaced "]])(Path("评论.csv"))
    assert main(["init", "评论.csv"]) == 0
    output = capsys.readouterr().out
    assert "note: 1 of 4 classes has fewer than 5 rows, such as 'spaced '." in output
    assert "note: 评论.csv has no letter from a to z, so its job is named mine: name=NAME names it.\n" in output
    assert "wrote conf/experiment/mine.yaml\n" in output
    table("text label", [[text, label if n % 10 else ""] for n, (text, label) in enumerate(ROWS)])(Path("gaps.csv"))
    assert main(["init", "gaps.csv"]) == 0
    assert "note: 12 rows have no label and are left out" in capsys.readouterr().out
    spent = [
        [n % 7, "xyz"[n % 3], n * 0.5 if n % 9 else "n/a", f"2020-01-{n % 28 + 1:02}", "ab"[n % 2]] for n in range(90)
    ]
    table("age city spent day label", spent)(Path("spent.csv"))
    assert main(["init", "spent.csv"]) == 0
    output = capsys.readouterr().out
    assert "note: spent is left out: it is read as text: 80 of 90 cells are numbers, the first other" in output
    assert "note: day is left out: it contains dates, such as '2020-01-01' in row 1" in output
    for pattern, first in (("{},5", "0,5"), ("${}.25", "$0.25"), ("{} %", "0 %")):
        table("paid rooms price", [[pattern.format(n), n % 5, n / 7] for n in range(90)], ";")(Path("paid.csv"))
        assert main(["init", "paid.csv", "force=true"]) == 0
        output = capsys.readouterr().out
        assert (
            f"note: paid is left out: it is read as text, but its cells look like numbers, the first is {first!r}"
            in output
        )
        assert "(task=tabular_regression)" in output
    images((16, 40, 70))(Path("sizes"))
    assert main(["init", "sizes"]) == 0
    assert "60 images in 2 classes, of 3 sizes, the shorter side 16 pixels" in capsys.readouterr().out


def test_an_experiment_is_replaced_only_with_force(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(folder / "my.csv")
    file = folder / "conf" / "experiment" / "my.yaml"
    assert main(["init", "my.csv"]) == 0
    written = file.read_text(encoding="utf-8")
    assert main(["init", "my.csv"]) == 0
    assert "conf/experiment/my.yaml says so already" in capsys.readouterr().out
    file.write_text("train: {duration: 1ep}\n", encoding="utf-8")
    assert main(["init", "my.csv"]) == 2
    assert "Set force=true to replace it, or choose another name: name=my_2." in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == "train: {duration: 1ep}\n"
    assert main(["init", "my.csv", "name=my_2"]) == 0
    assert main(["init", "my.csv", "force=true"]) == 0
    assert file.read_text(encoding="utf-8") == written
    assert main(["init", "my.csv", "name=digits"]) == 2
    assert main(["init", "my.csv", "name=../x"]) == 2
    assert main(["init"]) == 2
    shutil.rmtree("conf")
    Path("conf").touch()
    capsys.readouterr()
    for command in (["my.csv"], ["part=loss"]):
        assert main(["init", *command]) == 2
        assert "conf/" in (error := capsys.readouterr().err)
        assert "checkpoint" not in error


def test_values_with_special_characters_stay_values(folder: Path) -> None:
    for name, experiment in {"od: d $x #1.csv": "od_d_x_1", "a\x1b[2J\n_target_: b.csv": "a_2J__target__b"}.items():
        table("text label", [[*row] for row in ROWS])(Path("rows.csv"))
        # A control character in a comment would make YAML of all of it unreadable.
        Path(name).write_text(Path("rows.csv").read_text("utf-8").replace("label", "la\x07bel", 1), encoding="utf-8")
        assert main(["init", f"path={name}"]) == 0
        command = check_command("train", [f"experiment={experiment}"])
        assert command.single is not None
        assert command.single.config["data"]["train"] == name
        assert command.single.config["data"]["label"] == "la\x07bel"


def test_metric_of_the_best_weights_is_not_accuracy_if_most_rows_have_one_class(folder: Path) -> None:
    for name, share, monitor in (("rare", 8, "macro_f1"), ("even", 2, None)):
        table("text label", [[text, "no" if n % share else "yes"] for n, text in enumerate(TEXTS)])(Path(f"{name}.csv"))
        assert main(["init", f"{name}.csv"]) == 0
        command = check_command("train", [f"experiment={name}"])
        assert command.single is not None
        assert command.single.config["checkpoint"]["monitor"] == monitor


def test_a_column_without_a_name_is_left_out(folder: Path) -> None:
    """It is often the index of a data frame, and a config cannot name it."""
    rows = [f"{n % 7},{n * 3 % 11},{'yes' if n % 3 else 'no'}" for n in range(60)]
    Path("unnamed.csv").write_text("\n".join([",size,answer", *rows]), encoding="utf-8")
    assert main(["init", "unnamed.csv"]) == 0
    proposal = yaml.safe_load(Path("conf/experiment/unnamed.yaml").read_text(encoding="utf-8"))
    assert proposal["data"]["columns"]["features"] == ["size"]


def test_lists_of_numbers_are_a_target(folder: Path) -> None:
    rows = [{"size": n % 9, "answer": [n % 5, n % 7]} for n in range(60)]
    Path("lists.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["init", "lists.jsonl", "target=answer"]) == 0
    assert "task: tabular_regression" in Path("conf/experiment/lists.yaml").read_text(encoding="utf-8")


def test_names_that_no_config_can_contain_are_refused_before_writing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table("text label", [[*row] for row in ROWS])(Path("my${x}.csv"))
    assert main(["init", "my${x}.csv"]) == 2
    assert "data.train: must not contain ${" in capsys.readouterr().err
    assert not Path("conf").exists()


@pytest.mark.parametrize("has_gpu", [False, True])
def test_many_rows_on_a_gpu_get_a_larger_model(has_gpu: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.commands.init_proposal.has_gpu", lambda: has_gpu)
    table("text label", [[f"{n} {text}", label] for n in range(180) for text, label in ROWS])(Path("many.csv"))
    assert main(["init", "many.csv"]) == 0
    command = check_command("train", ["experiment=many"])
    assert command.single is not None
    assert command.single.config["model"]["dim"] == (256 if has_gpu else 128)


def test_large_file_is_sampled_without_torch(folder: Path) -> None:
    table("text label", [[*ROWS[n % 120]] for n in range(100_001)])(Path("large.csv"))
    heavy = "sorted({'torch', 'datasets', 'transformers', 'numpy'} & {*sys.modules})"
    code = f"import sys; from trainer.cli import main; assert main(['init', 'large.csv']) == 0; print({heavy})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "note: only the first 100,000 rows were looked at" in output
    assert output.splitlines()[-1] == "[]"


def test_questions_have_the_proposal_as_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table("title body kind stars", [[text[:9], text, label, n % 3] for n, (text, label) in enumerate(ROWS)])(
        Path("a.csv")
    )
    asked: list[str] = []
    answers = iter(["title", "kind", "mine", "", "", ""])
    monkeypatch.setattr("builtins.input", lambda question: (asked.append(question), next(answers))[1])
    assert main(["init", "a.csv", "--ask"]) == 0
    assert asked == ["column of text [body]: ", "column of target [stars]: ", "name of the experiment [a]: "]
    assert "Predict kind (3 classes) from title" in capsys.readouterr().out
    assert Path("conf/experiment/mine.yaml").exists()
    assert main(["init", "a.csv", "ask=true"]) == 0
    assert "Predict stars (3 classes) from body" in Path("conf/experiment/a.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("parts")
    with working_in(made):
        lines = [f"{text} {10 + n},{label}" for n, (text, label) in enumerate(rows(61))]
        (made / "train.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
        for part in PARTS:
            assert main(["init", f"part={part}"]) == 0
        yield made


def test_tests_of_written_parts_pass(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(parts)
    tests = sorted(parts.glob("test_*.py"))
    assert len(tests) == len(PARTS)
    for file in tests:
        runpy.run_path(str(file))["test_contract"]()


@pytest.mark.parametrize(
    "part",
    ["loss", "task", *[pytest.param(part, marks=pytest.mark.slow) for part in PARTS if part not in ("loss", "task")]],
)
def test_written_part_trains(part: str, parts: Path) -> None:
    chosen = f"{part}=my_{part}" if part != "metric" else "metrics=[{_target_: my_metric.MyMetric}]"
    data = ["data=files", "data.train=train.csv"] if part != "data" else []
    tiny = [key for key in TINY if not (part == "model" and key.startswith("model."))]
    exports = ["export.formats=[onnx]"] if part == "task" else []  # the only part that changes what predict.py must do
    assert main(["train", chosen, *data, *tiny, *exports, "train.duration=2", f"run.dir=run_{part}"]) == 0
    assert events(parts / f"run_{part}", "end")[-1]["step"] == 2


def test_part_replaces_no_file(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (parts / "my_loss.py").read_text(encoding="utf-8")
    assert main(["init", "part=loss"]) == 2
    assert "Set force=true to replace it" in capsys.readouterr().err
    for name in ("json", "class", "My", "a-b", "focal"):
        assert main(["init", "part=loss", f"name={name}"]) == 2
    assert main(["init", "part=los"]) == 2
    assert (parts / "my_loss.py").read_text(encoding="utf-8") == before
