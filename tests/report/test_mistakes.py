"""The section about the mistakes of a model, for every kind of predictions."""

import html
import re
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_answers import HOSTILE, KINDS, check_damage, render
from tests.support.stored_predictions import write_predictions
from trainer.predictions import Kind, read_about
from trainer.report.mistakes import mistake_section
from trainer.report.page import Section


def section_of(file: Path) -> Section:
    return mistake_section(file, read_about(file))


SENTENCES: dict[str, tuple[Kind, dict[str, list[Any]], list[str]]] = {
    "classes": (
        "class",
        {
            "target": ["a", "a", "a", "a", "b", "b", "c", None],
            "prediction": ["a", "b", "b", "c", "b", "b", "c", "c"],
            "probabilities": [[0.95, 0.05, 0.0]] * 2 + [[0.2, 0.6, 0.2]] * 6,
        },
        [
            "3 of 7 rows are wrong (42.9%).",
            "The commonest mistake: “b” instead of “a”, in 2 of 4 rows (50.0%).",
            "Found least often: “a”, 1 of 4 rows is found (25.0%).",
            "With a confidence of at least 93%, 1 of 2 answers is wrong (50.0%).",
        ],
    ),
    "two classes without probabilities": (
        "class",
        {"target": ["a", "b", "b"], "prediction": ["b", "b", "b"]},
        ["1 of 3 rows is wrong (33.3%).", "Found least often: “a”, 0 of 1 row is found (0.0%)."],
    ),
    "no mistake": ("class", {"target": ["a", "b"], "prediction": ["a", "b"]}, ["0 of 2 rows are wrong (0.0%)."]),
    "labels": (
        "labels",
        {"target": [["a", "b"], ["a"], [], None], "prediction": [["b"], ["a"], ["b"], ["a"]]},
        [
            "2 of 3 rows have a missing or a wrong label (66.7%).",
            "Missing most often: “a”, in 1 of 2 rows with it (50.0%).",
            "Wrong most often: “b”, in 1 of 2 rows that got it (50.0%).",
        ],
    ),
    "tags": (
        "tags",
        {"target": [["B-PER", "I-PER", "O"], ["B-ORG", "O"]], "prediction": [["B-PER", "O", "O"], ["B-ORG", "O"]]},
        [
            "1 of 2 entities is missed (50.0%): the type, the first and the last word must be right.",
            "1 of 2 predicted entities is wrong (50.0%).",
            "Found least often: “PER”, 0 of 1 entity is found (0.0%).",
        ],
    ),
    "spans": (
        "spans",
        {"target": [["0:1:PER", "3:3:ORG"]], "prediction": [["0:1:PER"]]},
        [
            "1 of 2 entities is missed (50.0%): the type, the first and the last word must be right.",
            "0 of 1 predicted entity is wrong (0.0%).",
            "Found least often: “ORG”, 0 of 1 entity is found (0.0%).",
        ],
    ),
    "values": (
        "values",
        {"target": [1.0, 2.0, 3.0, None], "prediction": [2.0, 3.0, 4.0, 9.0]},
        [
            "Half of the predictions are within 1 of their targets, and 90% within 1.",
            "The predictions are 1 too high on average.",
        ],
    ),
    "ranks": (
        "similarity",
        {"prediction": [0.5, 0.5, 0.9], "rank": [1, 2, 11]},
        [
            "For 2 of 3 texts (66.7%), another text is nearer than the right one.",
            "For 1 of 3 texts (33.3%), ten or more are nearer.",
        ],
    ),
    "hard negatives": (
        "similarity",
        {"prediction": [0.5, 0.5], "num_right": [1, 0]},
        ["For 1 of 2 texts (50.0%), a hard negative is nearer than the right text."],
    ),
    "tokens": ("tokens", {"num_targets": [7, 3, 0], "num_right": [3, 3, 0]}, ["4 of 10 tokens are wrong (40.0%)."]),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences_say_what_the_model_gets_wrong(case: str, tmp_path: Path) -> None:
    kind, columns, sentences = SENTENCES[case]
    targets = columns.get("target", [])
    classes = sorted({*"abc"} & {*str(targets)}) if kind in ("class", "labels") else None
    assert list(section_of(write_predictions(tmp_path, kind, classes=classes, **columns)).sentences) == sentences


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_worst_rows_and_is_escaped(kind: Kind, tmp_path: Path) -> None:
    classes = [HOSTILE, "b"] if kind in ("class", "labels") else None
    section = section_of(write_predictions(tmp_path / "some", kind, classes=classes, **KINDS[kind]))
    text = render(section)

    assert [table.title for table in section.tables if table.rows] == ["Worst rows"]
    assert "<script" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text

    for count in (0, 3):  # without values
        render(section_of(write_predictions(tmp_path / str(count), kind, row=list(range(count)))))


def test_ten_rows_are_shown_and_ten_more_are_folded(tmp_path: Path) -> None:
    losses = [float(number) for number in range(30)]
    file = write_predictions(tmp_path, "class", classes=["a"], target=["a"] * 30, prediction=["a"] * 30, loss=losses)
    shown, folded = section_of(file).tables
    assert (shown.is_folded, folded.is_folded, folded.title) == (False, True, "10 more rows")
    place = list(shown.columns).index("loss")
    assert [row[place] for row in (*shown.rows, *folded.rows)] == losses[:9:-1]
    assert list(shown.columns)[-1] == "row"


def test_inputs_of_worst_rows_are_shown_if_they_are_texts_or_pictures(tmp_path: Path) -> None:
    picture = "iVBORw0KGgoAAAANSUhEUg=="
    columns = "\n".join([f"{HOSTILE}: 2", "a: b: 0.5", *(f"column {index}: 0" for index in range(9))])
    texts = [{"text": HOSTILE}, {"image": picture}, {"image": f"{picture}{HOSTILE}"}, {"text": "x" * 900}]
    inputs = dict(enumerate([*texts, {"columns": columns}]))
    file = write_predictions(tmp_path, "values", inputs=inputs, target=[1.0] * 5, prediction=[2.0] * 5, loss=[1.0] * 5)
    section = section_of(file)
    text = render(section)

    assert text.count("<img ") == 1
    assert f'<img src="data:image/png;base64,{picture}"' in text
    assert "&lt;script&gt;" in text
    shown = [str(row[0]) for row in section.tables[0].rows]
    assert (shown[2], len(shown[3])) == ("", 300)
    assert "<span>a: b <b>0.5</b></span>" in shown[4]
    assert "<summary>more columns: 1</summary>" in shown[4]


@pytest.mark.parametrize(("target", "shown"), [(302.0, "302"), (0.5, "0.5000"), (1e300, "1.000e+300")])
def test_a_whole_number_is_shown_without_decimals_unless_it_is_huge(target: float, shown: str, tmp_path: Path) -> None:
    file = write_predictions(tmp_path, "values", target=[target], prediction=[0.25], loss=[1.0])
    assert f">{shown}</td>" in render(section_of(file))


def test_a_long_name_is_shortened_in_its_middle_and_shown_in_full_at_the_pointer(tmp_path: Path) -> None:
    names = [f"{HOSTILE} {'long' * 40} {ending}" for ending in ("one", "two")]
    columns = {"target": names, "prediction": names[::-1], "loss": [1.0, 2.0]}
    text = render(section_of(write_predictions(tmp_path, "class", classes=names, **columns)))

    titles = re.findall(r'<span class="name" title="([^"]*)">(.*?)</span>', text)
    assert {html.unescape(title)[-3:] for title, _ in titles} == {"one", "two"}
    assert all(len(html.unescape(title)) > 160 and len(html.unescape(shown)) < 80 for title, shown in titles)
    assert "<script" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_of_the_file(kind: Kind, tmp_path: Path) -> None:
    check_damage(kind, tmp_path, section_of)
