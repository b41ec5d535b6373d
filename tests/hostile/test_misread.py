"""Data that is probably not what it is read as: each case is reported, and the remedy in its message works."""

import csv
import json
import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests.support.jobs import TINY, rows, working_in
from trainer.cli import main

TABLE = ("task=tabular_classification",)
LABELS = ("task=multilabel_classification",)
TAGS = ("task=token_classification",)
TEXTS = [text for text, _ in rows(80)]
SMALL = [text for text in TINY if text.startswith(("train", "export", "logger", "device"))]
DATA_ERROR = 6


@dataclass(frozen=True)
class Case:
    """A job on data that is misread.

    Attributes:
        write: Writes the data into the working folder.
        overrides: The job.
        message: A pattern of the message.
        remedy: None if the message names an override to carry out; else the override or the deed that it asks for.
        is_warning: True if only `data.strict=true` makes it an error.
    """

    write: Callable[[], None]
    overrides: Sequence[str]
    message: str
    remedy: Callable[[], object] | str | None = None
    is_warning: bool = True


def write_columns(*, encoding: str = "utf-8", **columns: Sequence[str]) -> None:
    """Write `train.csv` with these columns."""
    with Path("train.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def cycle(*values: str, count: int = 80) -> list[str]:
    """Return so many values, in turns."""
    return [values[number % len(values)] for number in range(count)]


def feature(name: str, values: Sequence[str]) -> Callable[[], None]:
    """Return the function that writes a table with one other feature."""
    labels = cycle("yes", "no", "no")
    return lambda: write_columns(**{name: values, "size": SIZES, "label": labels})


def texts(role: str, values: Sequence[str]) -> Callable[[], None]:
    """Return the function that writes texts with targets."""
    return lambda: write_columns(text=TEXTS, **{role: values})


def write_vectors() -> None:
    lines = [json.dumps({"text": text, "labels": [1.0, float(n % 2), 0.0]}) for n, text in enumerate(TEXTS)]
    Path("train.jsonl").write_text("\n".join(lines))


def name_vectors() -> None:
    lines = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    for line in lines:
        line["labels"] = [name for name, value in zip("abc", line["labels"], strict=True) if value]
    lines[0]["labels"] = ["b", "c"]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, lines)))


def write_typed(**columns: Sequence[str | None]) -> None:
    """Write `train.parquet` with texts and these columns."""
    parquet.write_table(pa.table({"text": TEXTS, **columns}), "train.parquet")


def write_target(name: str, values: Sequence[str]) -> None:
    """Write a table with two features and this target."""
    sizes = [f"{n * n / 7:.3f}" for n in range(len(values))]
    write_columns(size=sizes, color=cycle("red", "blue", "green", count=len(values)), **{name: values})


def drop_row(number: int) -> None:
    lines = Path("train.csv").read_text().splitlines()
    Path("train.csv").write_text("\n".join([*lines[:number], *lines[number + 1 :]]))


def write_images(*folders: str) -> None:
    for number, folder in enumerate(folders):
        Path(folder).mkdir(parents=True)
        for shade in range(12):
            Image.new("L", (8, 8), 20 * shade + number).save(Path(folder, f"{shade}.png"))


def write_deep_images(factor: int) -> None:
    """Write images of 16 bits with numbers up to 255 times a factor."""
    for number in range(80):
        folder = Path("images", "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), 3 * number * factor, dtype=np.uint16)
        pixels[0, number % 8] = 255 * factor
        Image.fromarray(pixels).save(folder / f"{number}.png")


def write_inches() -> None:
    """Write texts of which one begins with a quote, and the next one ends with a sign for inches."""
    lines = [f"{text},{'ab'[number % 2]}" for number, text in enumerate(TEXTS)]
    lines[1], lines[2] = f'"{lines[1]}', lines[2].replace(",", '",')
    Path("train.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")


def convert(command: str) -> None:
    """Run the command of a message on the file."""
    Path("train.csv").rename("OLD")
    subprocess.run(command, shell=True, check=True)
    Path("NEW").rename("train.csv")


CONVERSION = "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
DATA_TYPED = "data.train=train.parquet"
PRICES = [f"{n}.25" for n in range(80)]
SIZES = [f"{n * n / 7:.3f}" for n in range(80)]
NUMBERS = [f"{n * n % 23}.25" for n in range(80)]
IMAGES = ("task=image_classification", "data=imagefolder", "data.root=images", "model=convnet")
FOLDERS = ("images/a", "images/b", "images/c", "images/d")
EQUAL = "names that differ only in white space, case, encoding or number format: "
LISTED = [f"t{n % 11};t{n % 5 + 11}" if n % 2 else f"t{n % 5 + 11};t{n % 11}" for n in range(80)]
GROUPED = cycle("950", "1.007", "12.500", "7.120", "640")
LISTS = "3 of 5 labels contain several other labels"

CASES = {
    "one cell that is no number": Case(
        feature("income", [*NUMBERS[:77], "abc", *NUMBERS[78:]]), TABLE,
        "column 'income' is read as text: 79 of 80 cells are numbers, the first other cell is 'abc' in .*, row 78",
        feature("income", [*NUMBERS[:77], "", *NUMBERS[78:]]),
    ),
    "numbers and NA": Case(
        feature("income", ["NA", *NUMBERS[1:]]), TABLE, "the first other cell is 'NA' in train.csv, row 1",
    ),
    "currency": Case(
        feature("income", [f"${n}" for n in NUMBERS]), TABLE, r"its cells look like numbers, the first is '\$0.25'",
        feature("income", NUMBERS),
    ),
    "decimal comma": Case(
        feature("income", [n.replace(".", ",") for n in NUMBERS]), TABLE, "its cells look like numbers",
        feature("income", NUMBERS),
    ),
    "row numbers": Case(
        feature("nr", [str(n) for n in range(80)]), TABLE,
        "column 'nr' only counts the rows, beginning at train.csv, row 1",
    ),
    "row numbers without a name": Case(
        feature("", [str(n) for n in range(80)]), TABLE, "column '' only counts the rows"
    ),
    "identifiers": Case(
        feature("userId", [str(n * 7 % 101) for n in range(80)]), TABLE, "'userId' has the name of an identifier",
    ),
    "texts that are all different": Case(
        feature("name", [f"name {n}" for n in range(80)]), TABLE, "column 'name' has a different text in each row",
    ),
    "dates": Case(feature("day", cycle("2024-01-10", "2024-01-11")), TABLE, "column 'day' contains dates"),
    "codes": Case(feature("zip", cycle("00123", "01123")), TABLE, "'zip' contains numbers with leading zeros"),
    "two spellings of a category": Case(
        feature("color", cycle("red", "Red", "blue")), TABLE,
        f"data.columns.features=null: column 'color': {EQUAL}'Red' and 'red'",
        feature("color", cycle("red", "red", "blue")),
    ),
    "labels with accents as one or two characters": Case(
        texts("label", cycle("caf\u00e9", "cafe\u0301", "tea", "te\u200ba")), (),
        rf"data.label=label: {EQUAL}'cafe\\u0301' and 'caf\u00e9'; 'tea' and 'te\\u200ba'",
        texts("label", cycle("caf\u00e9", "caf\u00e9", "tea", "tea")),
    ),
    "splits as labels": Case(
        lambda: write_columns(text=TEXTS, topic=cycle("a", "b", "c"), label=cycle("train", "train", "test")), (),
        "data.label=label: the labels are the names of splits: 'test', 'train'. Name the column of the classes",
        "data.label=topic",
    ),
    "labels with spaces": Case(
        texts("label", cycle("a", "b ", "a ", "b")), (), f"data.label=label: {EQUAL}'a' and 'a '; 'b' and 'b '",
        texts("label", cycle("a", "b")),
    ),
    "labels as numbers": Case(
        texts("label", cycle("1", "2.0", "2")), (), f"data.label=label: {EQUAL}'2' and '2.0'",
        texts("label", cycle("1", "2")),
    ),
    "spellings of a boolean": Case(
        texts("label", cycle("true", "1", "False")), (), f"data.label=label: {EQUAL}'1' and 'true'",
        texts("label", cycle("true", "False")),
    ),
    "several labels as one": Case(
        texts("label", cycle("a|b", "a", "b|c", "c", "b")), (),
        "data.label=label: 2 of 5 labels contain several other labels, such as 'a|b'",
    ),
    "lists as labels that rarely repeat": Case(
        texts("label", LISTED), (), "data.label=label: 80 of 80 labels contain several other labels, such as 't",
        is_warning=False,
    ),
    "lists as labels that are classes": Case(
        texts("label", cycle("a;b", "b;c")), (), "2 of 2 .*, and each is read as one class.* write it without ';'",
        texts("label", cycle("a and b", "b and c")),
    ),
    "dates as labels": Case(
        lambda: write_columns(text=TEXTS, topic=cycle("a", "b"), label=cycle("2024-01-03", "2024-01-04")), (),
        "label=label: the labels are dates, such as '2024-01-03' in train.csv, row 1, and each is a class. Name",
        "data.label=topic",
    ),
    "times as labels": Case(
        texts("label", cycle("1700000000123", "1700086400123")), (),
        "the labels are Unix times, such as '1700000000123' in train.csv, row 1", texts("label", cycle("2023", "2024")),
    ),
    "numbers with a comma as labels": Case(
        texts("label", cycle("1,5", "2", "2,5")), (), "the labels are numbers in another notation, such as '1,5'",
        texts("label", cycle("class 1,5", "class 2", "class 2,5")),
    ),
    "labels with letters of another alphabet": Case(
        texts("label", cycle("c\u0430t", "cat", "dog")), (),
        r"names that look alike, with letters of different alphabets: 'cat' \('cat' and 'c\\u0430t'\)",
        texts("label", cycle("cat", "cat", "dog")),
    ),
    "labels with a letter of another width": Case(
        texts("label", cycle("\uff43at", "cat", "dog")), (), f"{EQUAL}'cat' and '\uff43at'",
        texts("label", cycle("cat", "cat", "dog")),
    ),
    "a category in two alphabets": Case(
        feature("color", cycle("\u0391zure", "red", "blue")), TABLE,
        r"names with a word in two alphabets, whose letters look alike: '\u0391zure' \('\\u0391zure'\)",
        feature("color", cycle("Azure", "red", "blue")),
    ),
    "points before thousands in a feature": Case(
        feature("income", GROUPED), TABLE, "'income' contains numbers such as '1.007' in train.csv, row 2",
        feature("income", [number.replace(".", "") for number in GROUPED]),
    ),
    "decimals that look like thousands": Case(
        feature("income", GROUPED), TABLE, "otherwise a fourth decimal: 1.0070",
        feature("income", [f"{number}0" if "." in number else number for number in GROUPED]),
    ),
    "points before thousands in a value": Case(
        lambda: write_columns(text=TEXTS, value=GROUPED), ("task=regression",),
        "value=value: column 'value' contains numbers such as '1.007' in train.csv, row 2, and reads them as decimals",
        lambda: write_columns(text=TEXTS, value=[number.replace(".", "") for number in GROUPED]),
    ),
    "a comma in a value": Case(
        lambda: write_columns(text=TEXTS, value=[number.replace(".", ",") for number in NUMBERS]), ("task=regression",),
        "train.csv, row 1, .*: expected a number, got '0,25'. Write a number with a decimal point",
        lambda: write_columns(text=TEXTS, value=NUMBERS), is_warning=False,
    ),
    "labels with another separator": Case(
        texts("labels", cycle("a", "a, b", "b, c", "c", "a, c")), LABELS, f"labels: {LISTS}, such as 'a, b'",
    ),
    "labels as a Python list": Case(
        texts("labels", cycle("['a']", "['a', 'b']", "['b', 'c']")), LABELS, "looks like a list written as a text",
        texts("labels", cycle('["a"]', '["a", "b"]', '["b", "c"]')), is_warning=False,
    ),
    "a vector of labels": Case(
        write_vectors, (*LABELS, "data.train=train.jsonl"),
        r"row 1, column 'labels': expected the names .* a vector of 0 and 1",
        name_vectors, is_warning=False,
    ),
    "a label twice": Case(
        texts("labels", ["a|a", *cycle("b|c", "a", count=79)]), LABELS,
        "1 row contains a label twice, the first is train",
        texts("labels", ["a", *cycle("b|c", "a", count=79)]),
    ),
    "a label on every row": Case(
        texts("labels", cycle("a|b", "a|c", "a")), LABELS, "every row of training has the label 'a'",
        texts("labels", cycle("b", "c", "")),
    ),
    "all labels on every row": Case(
        texts("labels", cycle("a|b")), LABELS, "every row of training has all labels", texts("labels", cycle("a", "b")),
        is_warning=False,
    ),
    "a label that says that it is missing": Case(
        texts("label", ["a", "b", "N/A", *cycle("a", "b", count=77)]), (),
        "data.label=label: 1 row has the label 'N/A', the first is train.csv, row 3, and it is a class. Remove",
        lambda: drop_row(3),
    ),
    "a label that is missing in one of the formats": Case(
        lambda: write_typed(label=["a", "None", *cycle("a", "b", "None", count=78)]), (DATA_TYPED,),
        "27 rows have the label 'None', the first is train.parquet, row 2",
        lambda: write_typed(label=["a", "Nobody", *cycle("a", "b", "Nobody", count=78)]),
    ),
    "one of several labels is missing": Case(
        texts("labels", ["a|null", *cycle("a", "b", "a|b", count=79)]), LABELS,
        "data.columns.labels=labels: 1 row has the label 'null', the first is train.csv, row 1",
        texts("labels", cycle("a", "b", "a|b", "")),
    ),
    "a label of white space": Case(
        texts("label", [" ", *cycle("a", "b", count=79)]), (), "1 row has the label ' ', the first is train.csv, row 1",
        lambda: drop_row(1),
    ),
    "a price as a class": Case(
        lambda: write_target("price", PRICES), ("task=tabular_classification", "data.label=price"),
        "data.label=price: 80 different numbers, such as '0.25' in train.csv, row 1, are read as classes",
        is_warning=False,
    ),
    "a price with a few values as a class": Case(
        lambda: write_target("unit price", cycle("0.5", "1.5")), (*TABLE, "data.label='unit price'"),
        "2 different numbers, such as '0.5' in train.csv, row 1, are read as classes",
    ),
    "a price as the class of a text": Case(
        lambda: write_columns(text=TEXTS, price=PRICES), ("data.label=price",),
        "80 different numbers, such as '0.25'", is_warning=False,
    ),
    "counts as classes": Case(
        lambda: write_target("sold", [str(n // 2 * 11) for n in range(400)]), (*TABLE, "data.label=sold"),
        "200 different numbers, such as '0' in train.csv, row 1, are read as classes",
        lambda: write_target("sold", [f"class {n % 7}" for n in range(400)]),
    ),
    "labels that a spreadsheet has turned into dates": Case(
        texts("label", cycle("1-Sep", "TP53")), (), "the label '1-Sep' in train.csv, row 1 is probably a name",
        texts("label", cycle("SEPT1", "TP53")),
    ),
    "cells in single quotes": Case(
        lambda: write_columns(text=[f"'{t}'" for t in TEXTS], label=cycle("'a'", "'b'")), (), "are in single quotes",
    ),
    "a repeated header": Case(
        lambda: write_columns(text=[*TEXTS[:79], "text"], label=[*cycle("a", "b", count=79), "label"]), (),
        "train.csv, row 80 has the label 'label', which is the name of the column", lambda: drop_row(80),
    ),
    "no header": Case(
        lambda: write_columns(**{"0.5": SIZES, "3": cycle("7", "8", "2"), "yes": cycle("no", "yes")}),
        (*TABLE, "data.label='yes'"), "train.csv, row 2 has the label 'yes', which is the name of the column",
        lambda: write_columns(size=SIZES, kind=cycle("7", "8", "2"), yes=cycle("no", "yes")),
    ),
    "a feature that is the target": Case(
        feature("outcome", cycle("1", "0", "0")), TABLE, "'outcome' has a value of its own for each target",
    ),
    "a feature that equals the value": Case(
        lambda: write_columns(size=SIZES, copy=PRICES, value=PRICES), ("task=tabular_regression",),
        "'copy' has a value of its own for each target",
    ),
    "garbled texts": Case(
        lambda: write_columns(text=[f"{t} caf\u00c3\u00a9" for t in TEXTS], label=cycle("a", "b")), (),
        "data.text=text: 80 texts contain garbled characters, the first is train.csv, row 1",
        texts("label", cycle("a", "b")),
    ),
    "rows in a quoted cell": Case(
        lambda: write_inches(), (),
        "train.csv, line 3: a quoted cell has 2 lines, which look like rows of the file",
        "data.quote=null",
    ),
    "old line ends": Case(
        lambda: Path("train.csv").write_text("\r".join(["text,label", *(f"{text},{text[0]}" for text in TEXTS)])),
        (), re.escape(r"tr '\r' '\n' < OLD > NEW"), lambda: convert(r"tr '\r' '\n' < OLD > NEW"), is_warning=False,
    ),
    "more categories than features": Case(
        feature("color", [f"color {n % 16}" for n in range(80)]), (*TABLE, "task.max_categories=4"),
        "columns with 4 categories or more: color. Raise task.max_categories", "task.max_categories=16",
    ),
    "categories that rarely repeat": Case(
        feature("town", [f"town {n // 2 if n < 78 else n}" for n in range(80)]), TABLE,
        "Leave out columns whose texts rarely repeat, such as town", "data.columns.features=[size]",
    ),
    "texts that are cut": Case(
        texts("label", cycle("a", "b")), ("task.max_length=8",), "Raise task.max_length", "task.max_length=64",
    ),
    "a comma in a cell without quotes": Case(
        lambda: Path("train.csv").write_text("\n".join(["text,label", "a, b,c", *(f"{t},{t[0]}" for t in TEXTS)])), (),
        "train.csv, line 2: expected 2 cells as in the header, got 3. Quote cells that contain ','",
        texts("label", cycle("a", "b")), is_warning=False,
    ),
    "quotes that are characters": Case(
        lambda: Path("train.csv").write_text("\n".join(["text,label", *(f'"{t} "x",{t[0]}' for t in TEXTS)])), (),
        "or set data.quote=null if quotes are ordinary characters", "data.quote=null", is_warning=False,
    ),
    "an empty class folder": Case(
        lambda: [write_images(*FOLDERS), Path("images/e").mkdir()], IMAGES,
        "1 folder has no images and so no class; remove the folder or add images: images/e",
        lambda: Path("images/e").rmdir(),
    ),
    "images of 16 bits that use 8": Case(
        lambda: write_deep_images(1), IMAGES, "the first pixels of training are all from 0 to 0 of 255",
        lambda: [shutil.rmtree("images"), write_deep_images(256)],
    ),
    "images of several sizes": Case(
        lambda: [write_images(*FOLDERS), Image.new("L", (9, 8)).save("images/a/0.png")], IMAGES,
        "Set it, such as task.size=224", "task.size=24", is_warning=False,
    ),
    "columns of one name": Case(
        lambda: Path("train.csv").write_text("text,label,label\na b,c,d\n"), (),
        "has 2 columns 'label'. Give each column",
        texts("label", cycle("a", "b")), is_warning=False,
    ),
    "Latin-1": Case(
        lambda: write_columns(encoding="cp1252", text=[f"{t} été “" for t in TEXTS], label=cycle("a", "b")), (),
        re.escape(CONVERSION), lambda: convert(CONVERSION), is_warning=False,
    ),
    "UTF-16": Case(
        lambda: write_columns(encoding="utf-16", text=TEXTS, label=cycle("a", "b")), (),
        "iconv -f UTF-16 -t UTF-8 OLD > NEW", lambda: convert("iconv -f UTF-16 -t UTF-8 OLD > NEW"), is_warning=False,
    ),
    "folders that may be splits": Case(
        lambda: write_images(*(f"images/{outer}/{label}" for outer in ("one", "two") for label in "ab")), IMAGES,
        "the classes one, two all contain the folders a, b; if these are the classes, rename the outer folders",
        lambda: [Path("images", old).rename(Path("images", new)) for old, new in (("one", "Train"), ("two", "Test"))],
    ),
}  # fmt: skip


COLUMNS = {
    "text date": ([f"{n % 28 + 1} Jan 2024" for n in range(80)], "contains dates, such as '1 Jan 2024'"),
    "date": ([f"202401{n % 28 + 1:02d}" for n in range(80)], "contains dates written as numbers, the first is"),
    "seconds": (
        [str(1_700_000_000 + 3600 * (n % 40)) for n in range(80)],
        "contains Unix times in seconds, the first is",
    ),
    "account": ([f"4.{n % 50:02d}E+15" for n in range(80)], "numbers that a spreadsheet has cut"),
    "weight": ([f"{n % 40}.5 kg" for n in range(80)], "its cells look like numbers, the first is '0.5 kg'"),
    "rate": ([f"{n % 40}%" for n in range(80)], "its cells look like numbers, the first is '0%'"),
    "income": ([f"{n % 9},{n:03d}" for n in range(80)], "its cells look like numbers, the first is '0,000'"),
    "temp": (
        ["-999", *NUMBERS[:78], "-999"],
        "no negative numbers except -999 in 2 rows, the first is train.csv, row 1",
    ),
    "color": (
        cycle("red", "blue", "NULL"),
        "has 26 cells such as 'NULL' in train.csv, row 3, read as a category instead of as missing",
    ),
}
"""Features that are misread, with the message, and what is read as it is meant."""
PLAIN = {
    **dict.fromkeys(("text date", "date", "seconds", "account", "weight", "rate", "income"), NUMBERS),
    "temp": ["", *NUMBERS[:78], ""],
    "color": cycle("red", "blue", ""),
    "place": cycle("1st", "2nd", "3rd", "12th"),
    "cold": cycle("-99", "-98.5", "3.25", "17"),
    "spam": cycle("spam", "ham", "ham"),
    "index": [str(n % 40) for n in range(80)],
}


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Plan a job; return the exit code and what it says."""
    files = () if IMAGES[1] in overrides else ("data=files", "data.train=train.csv", "data.cache_dir=cache")
    capsys.readouterr()
    code = main(["plan", "device=cpu", "trial=false", *files, *overrides])
    return code, capsys.readouterr().err


_BEGINS_WITH_KEY = re.compile(
    r"data\.strict: (train|validation|test|task\.\w+|data\.(train|validation|test|root|text|label|columns\.\w+)(=.*?)?"
    r"|the column \w+ of data=\w+|train\.csv, line \d+): "
)
"""The beginning of a warning: a key that the user can type, the split, a column, or a line of the file."""


def overrides_in(message: str) -> list[str]:
    """Return the overrides that a message names, as a shell passes them."""
    words = re.findall(
        r''''\S+=\[.*?\]'|"\S+='.'\"|task=\w+|\S+=COLUMN|"data\.(?:columns\.(?:value|labels)|quote)=.*?"''', message
    )
    return shlex.split(" ".join(words))


@pytest.mark.parametrize("name", CASES)
def test_misread_data_is_reported_and_the_remedy_works(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    with working_in(tmp_path):
        case.write()
        code, message = plan(capsys, *case.overrides, "data.strict=true")
        assert code == DATA_ERROR
        assert re.search(case.message, message), message
        assert not case.is_warning or all(map(_BEGINS_WITH_KEY.match, message.splitlines())), message
        if case.remedy is None:
            remedy = [text.replace("COLUMN", "label") for text in overrides_in(message)]
            assert remedy, message
        elif isinstance(case.remedy, str):
            remedy = [case.remedy]
        else:
            remedy = []
            case.remedy()
        assert plan(capsys, *case.overrides, "data.strict=true", *remedy) == (0, "")


@pytest.mark.parametrize(
    "name",
    [
        name if number % 8 == 0 else pytest.param(name, marks=pytest.mark.slow)
        for number, name in enumerate(name for name, case in CASES.items() if case.is_warning)
    ],
)
def test_misread_data_is_only_a_warning_by_default(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with working_in(tmp_path):
        CASES[name].write()
        assert plan(capsys, *CASES[name].overrides)[0] == 0


def test_misread_columns_are_all_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = (*TABLE, "data.label=spam", "task.max_categories=80", "data.strict=true")
    with working_in(tmp_path):
        write_columns(size=SIZES, spam=PLAIN["spam"], **{name: values for name, (values, _) in COLUMNS.items()})
        code, message = plan(capsys, *job)
        assert code == DATA_ERROR
        for name, (_, problem) in COLUMNS.items():
            assert any(f"column {name!r}" in line and problem in line for line in message.splitlines()), (name, message)
        write_columns(size=SIZES, **PLAIN)
        assert plan(capsys, *job) == (0, "")


def write_lists(separator: str) -> None:
    """Write words and tags as JSON lists in the cells of a CSV file, compact or with spaces."""
    words = [text.split() for text in TEXTS]
    tags = [["O", *["B-x"] * (len(each) - 1)] for each in words]
    as_json = json.JSONEncoder(separators=(separator, ":")).encode
    write_columns(words=list(map(as_json, words)), tags=list(map(as_json, tags)))


def write_tabs() -> None:
    lines = [f"{text}\t{'ab'[n % 2]}" for n, text in enumerate(TEXTS)]
    Path("train.csv").write_text("\n".join(["text\tlabel", *lines]))


def write_spreadsheet() -> None:
    lines = [f"{n * n / 7:.3f},,{'ab'[n % 2]}," for n in range(80)]
    Path("train.csv").write_text("\n".join(["size,,label,", *lines]))


@pytest.mark.parametrize(
    ("write", "overrides"),
    [
        (lambda: write_lists(","), TAGS),
        (lambda: write_lists(", "), TAGS),
        (texts("labels", cycle('["a", "b"]', '["b"]', "[]")), LABELS),
        (write_tabs, [r"data.separator=\t"]),
        (write_tabs, [r'data.separator="\t"']),
        (write_spreadsheet, [*TABLE, "data.strict=false"]),
        (texts("label", cycle("DE", "NA", "FR")), []),
        (lambda: write_target("label", [str(n % 120) for n in range(1200)]), TABLE),
        (texts("label", cycle("a", "b", "b")), ["loss.weight={a: 1, b: 0.5}"]),
        (texts("label", cycle("a", "b", "b")), ["loss=focal", "loss.alpha=[2,1]"]),
    ],
)
def test_data_in_a_usual_form_is_read(
    write: Callable[[], None], overrides: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with working_in(tmp_path):
        write()
        code, message = plan(capsys, "data.strict=true", *overrides)
    assert (code, [line for line in message.splitlines() if "without a name" not in line]) == (0, [])


def train(*overrides: str) -> int:
    steps = ("train.duration=2st", "train.eval_every=2st", "checkpoint.every=2st")
    return main(["train", "data=files", "data.cache_dir=cache", *SMALL, *steps, *overrides])


def test_a_boolean_means_the_same_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [n * n / 7 for n in range(80)]
    truth = [n % 3 == 0 for n in range(80)]

    def answers(run: str, file: str) -> tuple[object, str]:
        assert main(["eval", f"run={run}", f"data.test={file}"]) == 0
        scores = json.loads(Path(run, "eval", "test.json").read_text())
        capsys.readouterr()
        assert main(["predict", f"run={run}", f"input={file}"]) == 0
        return scores, capsys.readouterr().out

    with working_in(tmp_path):
        parquet.write_table(pa.table({"size": sizes, "member": truth, "label": truth}), "train.parquet")
        texts_of_truth = [str(each) for each in truth]
        write_columns(size=list(map(str, sizes)), member=texts_of_truth, label=list(map(str.lower, texts_of_truth)))
        for run, file, other in (("a", "train.parquet", "train.csv"), ("b", "train.csv", "train.parquet")):
            assert train(f"data.train={file}", f"run.dir={run}", *TABLE) == 0
            assert answers(run, file) == answers(run, other)


def test_a_run_continues_with_data_that_was_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        write_columns(text=TEXTS, label=cycle("a", "b"))
        assert train("data.train=train.csv", "run.dir=run", *TINY) == 0
        Path("train.csv").rename("trained.csv")
        capsys.readouterr()
        resume = ["train", "resume=run", "train.duration=3st"]
        assert main(resume) == DATA_ERROR
        (name,) = re.findall(r"Did you mean (\S+)\?", capsys.readouterr().err)
        assert main([*resume, f"data.train={name}", "data.cache_dir=moved-cache"]) == 0
        assert main(["eval", "run=run", "checkpoint=step-2", f"data.train={name}"]) == 0
        write_columns(text=TEXTS, label=cycle("b", "a"))
        assert main(["train", "resume=run", "train.duration=4st", "data.train=train.csv"]) == 3
        assert "the data has changed since the checkpoint was saved" in capsys.readouterr().err


def test_few_values_are_noted_as_possible_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job = ["plan", "device=cpu", "trial=false", "data=files", "data.train=train.csv", "data.cache_dir=cache"]
    with working_in(tmp_path):
        for values, count in (("0", "1.5"), 1), (tuple("123456"), 0):
            caplog.clear()
            write_target("grade", cycle(*values))
            assert main([*job, "data.strict=true", "task=tabular_regression", "data.columns.value=grade"]) == 0
            assert sum("training has only 2 different values. If" in line for line in caplog.messages) == count
        assert main([*job, "data.strict=true", *TABLE, "data.label=grade"]) == 0


def test_the_order_of_class_weights_is_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with working_in(tmp_path):
        texts("label", cycle("b", "a", "b"))()
        assert plan(capsys, "loss.weight=[0.5,2]")[0] == 0
        code, message = plan(capsys, "loss.weight=[0.5]")
    assert "loss.weight: a 0.5, b 2" in caplog.messages
    assert code == 2
    assert "Their order is a, b" in message
