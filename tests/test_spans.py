import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.answers import assert_close
from tests.support.jobs import train, working_in
from trainer.cli import main
from trainer.spans import count_spans, list_spans, list_targets, pack_spans, possible_spans, span_cells

CLASSES = 3
Span = tuple[int, int, int]


@st.composite
def samples(draw: st.DrawFn) -> list[tuple[list[bool], set[Span]]]:
    """Return some samples: which tokens may bound spans, and spans of these tokens."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        may_bound = draw(st.lists(st.booleans(), min_size=1, max_size=6))
        places = [place for place, bound in enumerate(may_bound) if bound]
        pairs = list(itertools.combinations_with_replacement(places, 2))
        spans = st.tuples(st.sampled_from(pairs or [(0, 0)]), st.integers(0, CLASSES - 1))
        drawn = draw(st.lists(spans, max_size=6 if pairs else 0))
        made.append((may_bound, {(*pair, index) for pair, index in drawn}))
    return made


def pack(made: list[tuple[list[bool], set[Span]]], width: int = 7) -> torch.Tensor:
    return pack_spans(
        [np.array(sorted(spans), dtype=np.int32).reshape(-1, 3) for _, spans in made],
        [np.array(may_bound) for may_bound, _ in made],
        width=width,
        num_classes=CLASSES,
    )


@given(made=samples())
def test_a_target_contains_the_spans_and_the_tokens_that_may_bound_them(
    made: list[tuple[list[bool], set[Span]]],
) -> None:
    target = pack(made)
    depth = max(sum(first == place for first, _, _ in spans) for _, spans in made for place in range(6))
    assert target.shape == (len(made), 7, max(1, depth))
    cells = span_cells(target, CLASSES)
    for row, (may_bound, spans) in enumerate(made):
        assert list_targets(target[row], CLASSES) == sorted(spans)
        places = cells.cells[row][cells.exist[row]].tolist()
        assert sorted((each // 7 % 7, each % 7, each // 49) for each in places) == sorted(spans)
        possible = {(i, j) for i, j in itertools.product(range(6), repeat=2) if i <= j < len(may_bound)}
        expected = {(i, j) for i, j in possible if may_bound[i] and may_bound[j]}
        assert {(i, j) for i, j in possible_spans(target)[row].nonzero().tolist()} == expected


@settings(max_examples=40)
@given(made=samples(), seed=st.integers(0, 1000))
def test_counts_are_those_of_sets(made: list[tuple[list[bool], set[Span]]], seed: int) -> None:
    target = pack(made)
    scores = torch.randn(len(made), CLASSES, 7, 7, generator=torch.Generator().manual_seed(seed))
    counts = count_spans(scores, target)
    assert (counts.shape, counts.dtype) == ((3, len(made), CLASSES), torch.int64)
    for row, (_, actual) in enumerate(made):
        found = {*list_spans((scores[row] > 0) & possible_spans(target)[row])}
        for index in range(CLASSES):
            sets = [{span for span in each if span[2] == index} for each in (actual & found, found, actual)]
            assert counts[:, row, index].tolist() == [len(each) for each in sets]


JOB = ["task=span_classification", "loss.head_size=8", "optimizer.lr=0.02", "train.duration=100", "train.eval_every=50"]


def sentence(random: Random, number: int) -> dict[str, Any]:
    """Return a sentence with a place in the name of an organization."""
    person, place = random.choice(["Anna", "Ben", "Eve"]), random.choice(["China", "Bern", "Peru"])
    name = f"{random.choice(['Bank', 'Museum'])} of {place}"
    text = f"{person} joined the {name} in {random.choice(['China', 'Bern', 'Peru'])} on day {number}."
    start = text.index(name)
    end = start + len(name)
    last = text.index(" in ") + 4
    return {
        "text": text,
        "spans": [
            [0, len(person), "PER"],
            [start, end, "ORG"],
            [end - len(place), end, "LOC"],
            [last, text.index(" on day"), "LOC"],
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with sentences and the run `run` on them."""
    root = tmp_path_factory.mktemp("spans")
    random = Random(0)
    for split, count in {"train": 64, "validation": 16, "test": 16}.items():
        lines = [json.dumps(sentence(random, number)) for number in range(count)]
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = ["data=files", *(f"data.{split}={split}.jsonl" for split in ("train", "validation", "test"))]
    with working_in(root):
        assert train(root / "run", *files, *JOB) == 0
        yield root


def answers_of(*options: str) -> list[dict[str, Any]]:
    assert main(["predict", *options, "input=odd.jsonl", "output=answers.jsonl", "force=true", "device=cpu"]) == 0
    return [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_finds_spans_in_each_other(folder: Path) -> None:
    scores = json.loads((folder / "run/eval/test.json").read_text(encoding="utf-8"))
    assert scores["entity_f1"] > 0.9
    assert scores["intervals"]["entity_f1"][0] < scores["entity_f1"]


@pytest.mark.parametrize("data", [["data=files", "data.train=train.jsonl"], ["data=hub", "data.path=name"]])
def test_spans_of_several_columns_are_refused(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    key = "data.text" if data[0] == "data=files" else "data.columns.text"
    assert main(["plan", "task=span_classification", *data, f"{key}=[title,body]"]) == 2
    problem = "must be one column, because the places of spans are characters of one text, got ['title', 'body']"
    assert f"{key}: {problem}. Set {key}=title." in capsys.readouterr().err.splitlines()


@pytest.mark.slow
def test_answers_are_the_same_from_the_model_the_graph_and_the_script(folder: Path) -> None:
    texts = [
        "Anna joined the Bank of China in Bern.",
        "  Bern  ",
        "in " * 40 + "Peru",
        "\u0001 Anna 🪓 in Bern",
        "Ω",
        "in\nPeru",
    ]
    (folder / "odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    assert main(["export", "run=run", "export.formats=[onnx,onnx_int8,torchscript,pt2,safetensors]"]) == 0
    expected = answers_of("run=run")
    assert [answer["text"] for answer in expected] == texts
    assert [(entity["type"], entity["text"]) for entity in expected[0]["entities"]] == [
        ("PER", "Anna"),
        ("ORG", "Bank of China"),
        ("LOC", "China"),
        ("LOC", "Bern"),
    ]
    for text, answer in zip(texts, expected, strict=True):
        assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in answer["entities"])
    assert_close(answers_of("run=run", "backend=onnx"), expected)
    assert_close(answers_of("run=run/export"), expected)
    script = [sys.executable, "-I", str(folder / "run/export/predict.py"), str(folder / "odd.jsonl")]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert_close([json.loads(line) for line in lines], expected)
