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
from torch import Tensor

from tests.support.answers import assert_close
from tests.support.jobs import train, working_in
from trainer.cli import main
from trainer.export.bundle.answers import best_sequence, rate_entities
from trainer.tags import (
    TagTransitions,
    decode_tags,
    follows_scheme,
    forbid_transitions,
    parse_transitions,
    sum_sequences,
)

BIO = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
BIOES = ["O", "B-X", "I-X", "E-X", "S-X", "S-Y"]


def transitions_of(num_tags: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> TagTransitions:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num_tags,), (num_tags, num_tags), (num_tags,))
    return TagTransitions(*(2 * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes))


def sequence_score(scores: Tensor, tags: tuple[int, ...], transitions: TagTransitions) -> float:
    total = transitions.start[tags[0]] + transitions.end[tags[-1]]
    total = total + sum(scores[place, tag] for place, tag in enumerate(tags))
    return float(total + sum(transitions.between[pair] for pair in itertools.pairwise(tags)))


def best_by_brute_force(scores: Tensor, transitions: TagTransitions) -> tuple[list[int], Tensor]:
    """Return the best sequence, and the best score with each tag at each word (W, C), over all sequences of tags."""
    width, num_tags = scores.shape
    values = {
        tags: sequence_score(scores, tags, transitions) for tags in itertools.product(range(num_tags), repeat=width)
    }
    marginals = [
        [max(value for tags, value in values.items() if tags[place] == tag) for tag in range(num_tags)]
        for place in range(width)
    ]
    return list(max(values, key=lambda tags: values[tags])), torch.tensor(marginals, dtype=torch.float64)


@settings(max_examples=30)
@given(widths=st.lists(st.integers(0, 4), min_size=1, max_size=3), seed=st.integers(0, 10_000), gap=st.booleans())
def test_decoded_tags_are_the_best_of_all_sequences(widths: list[int], seed: int, gap: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(len(widths), 9, 3, generator=generator, dtype=torch.float64)
    is_word = torch.zeros(len(widths), 9, dtype=torch.bool)
    for row, width in enumerate(widths):
        is_word[row, 1 : 1 + width * (1 + gap) : 1 + gap] = True  # with other tokens before, after and between words
    transitions = transitions_of(3, seed)

    decoded = decode_tags(output, is_word, transitions)

    torch.testing.assert_close(decoded[~is_word], output[~is_word], rtol=0, atol=0)
    for row in range(len(widths)):
        if widths[row]:
            tags, marginals = best_by_brute_force(output[row][is_word[row]], transitions)
            assert decoded[row][is_word[row]].argmax(dim=1).tolist() == tags
            torch.testing.assert_close(decoded[row][is_word[row]], marginals, rtol=1e-12, atol=1e-12)


def test_tags_are_those_of_one_sequence_if_several_are_as_good() -> None:
    transitions = TagTransitions(torch.zeros(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2))

    tags = decode_tags(torch.zeros(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), transitions).argmax(dim=2)[0].tolist()

    assert tags in ([0, 1, 0, 1], [1, 0, 1, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_in_half_precision_are_decoded_in_float32(dtype: torch.dtype) -> None:
    output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    transitions, is_word = transitions_of(3, dtype=torch.float32), torch.ones(2, 5, dtype=torch.bool)
    decoded = decode_tags(output, is_word, transitions)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, decode_tags(output.float(), is_word, transitions))


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3)])
def test_nothing_to_decode(shape: tuple[int, int, int]) -> None:
    decoded = decode_tags(torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool), transitions_of(3))
    assert decoded.shape == shape


def allowed_pairs(tags: list[str]) -> set[tuple[str, str]]:
    forbidden = forbid_transitions(tags)
    places = {**dict(enumerate(tags))}
    pairs = {(places[j], places[k]) for j, k in (forbidden.between == 0).nonzero().tolist()}
    pairs |= {("<", places[k]) for k in (forbidden.start == 0).nonzero().flatten().tolist()}
    return pairs | {(places[j], ">") for j in (forbidden.end == 0).nonzero().flatten().tolist()}


def test_scheme_bio() -> None:
    assert follows_scheme(BIO)
    everywhere = {(tag, after) for tag in ["<", *BIO] for after in ["B-LOC", "B-PER", "O"]}
    inside = {(f"{prefix}-{name}", f"I-{name}") for prefix in "BI" for name in ("LOC", "PER")}
    assert allowed_pairs(BIO) == everywhere | inside | {(tag, ">") for tag in BIO}


def test_scheme_bioes() -> None:
    assert follows_scheme(BIOES)
    outside = {
        (before, after) for before in ["<", "O", "E-X", "S-X", "S-Y"] for after in ["O", "B-X", "S-X", "S-Y", ">"]
    }
    inside = {("B-X", "I-X"), ("B-X", "E-X"), ("I-X", "I-X"), ("I-X", "E-X")}
    assert allowed_pairs(BIOES) == (outside - {("<", ">")}) | inside
    renamed = [tag.replace("E-", "L-").replace("S-", "U-") for tag in BIOES]
    assert torch.equal(forbid_transitions(renamed).between, forbid_transitions(BIOES).between)


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], ["O", "I-X"], ["O", "B-X", "I-X", "I-Y"], ["O", "B-X", "X"], []])
def test_tags_without_a_scheme(tags: list[str]) -> None:
    assert not follows_scheme(tags)


def test_forbidden_transitions_are_never_decoded() -> None:
    generator = torch.Generator().manual_seed(1)
    forbidden, allowed = forbid_transitions(BIO), allowed_pairs(BIO)
    output = 30 * torch.randn(40, 6, len(BIO), generator=generator)
    tags = decode_tags(output, torch.ones(40, 6, dtype=torch.bool), forbidden).argmax(dim=2).tolist()
    names = [["<", *(BIO[tag] for tag in row), ">"] for row in tags]
    assert all(pair in allowed for row in names for pair in itertools.pairwise(row))
    assert any(
        pair not in allowed
        for row in output.argmax(dim=2).tolist()
        for pair in itertools.pairwise([BIO[k] for k in row])
    )


def test_document_keeps_the_bits() -> None:
    transitions = transitions_of(4, dtype=torch.float32)
    read = parse_transitions(json.loads(json.dumps(transitions.document())), 4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read, transitions, strict=True))
    with pytest.raises(ValueError, match="must be scores of 5 tags"):
        parse_transitions(transitions.document(), 5)


@settings(max_examples=30)
@given(width=st.integers(0, 6), num_tags=st.integers(2, 5), seed=st.integers(0, 10_000))
def test_script_of_artifacts_finds_the_same_tags(width: int, num_tags: int, seed: int) -> None:
    transitions = transitions_of(num_tags, seed, torch.float32)
    output = torch.randn(1, width, num_tags, generator=torch.Generator().manual_seed(seed))
    decoded = decode_tags(output, torch.ones(1, width, dtype=torch.bool), transitions)
    assert best_sequence(output[0].numpy(), transitions.document()) == decoded[0].argmax(dim=1).tolist()


def test_a_score_that_is_not_a_number_has_no_probability() -> None:
    scores = torch.zeros(2, 3)
    scores[1, 1] = torch.nan
    (sums,) = sum_sequences([scores], transitions_of(3))
    every = np.ones(3, dtype=bool)
    assert np.isnan(sums.probability(0, [1], every, every))
    spans: list[dict[str, Any]] = [{"start": 0, "end": 1}]
    rate_entities(spans, [0, 1], [1, 0], ["O", "B-x", "I-x"], scores.numpy(), None)
    assert np.isnan(spans[0]["probability"])


ALTERNATING = ["task=token_classification", "optimizer.lr=1e-5", "train.duration=20", "train.eval_every=20"]
"""Tags that only their order reveals, to a model that hardly learns."""
CRF = ["loss=crf", "optimizer.overrides=[{match:loss.*,lr:0.5}]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a folder with sentences whose tags alternate, and the runs `crf` and `plain` on them."""
    root = tmp_path_factory.mktemp("alternating")
    random = Random(0)
    for split, count in {"train": 60, "validation": 15, "test": 15}.items():
        with (root / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                words = random.choices(["axe", "drill", "hammer", "knife", "pliers"], k=random.randrange(1, 12))
                tags = ["B-turn" if place % 2 else "O" for place in range(len(words))]
                file.write(json.dumps({"words": words, "tags": tags}) + "\n")
    files = ["data=files", *(f"data.{split}={split}.jsonl" for split in ("train", "validation", "test"))]
    with working_in(root):
        assert train(root / "crf", *ALTERNATING, *files, *CRF) == 0
        assert train(root / "plain", *ALTERNATING, *files) == 0
        yield root


def test_transitions_are_learned_and_followed_in_evaluations(folder: Path) -> None:
    accuracy = {
        name: json.loads((folder / name / "eval/test.json").read_text(encoding="utf-8"))["accuracy"]
        for name in ("crf", "plain")
    }
    assert accuracy["crf"] == 1
    assert accuracy["plain"] < 0.7


ODD_ROWS = [["knife"] * 5, ["knife"], ["\x00"], ["axe", "\x00", "drill", "saw"], ["knife"] * 40, ["Ω", "🪓", "a" * 500]]


def predicted_tags(answers: list[dict[str, Any]]) -> list[list[str | None]]:
    assert [answer["words"] for answer in answers] == ODD_ROWS
    return [answer["tags"] for answer in answers]


def test_predictions_follow_transitions(folder: Path) -> None:
    (folder / "odd.jsonl").write_text("".join(json.dumps({"words": row}) + "\n" for row in ODD_ROWS), encoding="utf-8")
    assert main(["predict", "run=crf", "input=odd.jsonl", "output=odd-crf.jsonl", "device=cpu"]) == 0
    answers = [json.loads(line) for line in (folder / "odd-crf.jsonl").read_text(encoding="utf-8").splitlines()]
    tags = predicted_tags(answers)

    assert tags[0] == ["O", "B-turn", "O", "B-turn", "O"]
    assert tags[2] == [None]
    assert tags[3] == ["O", None, "B-turn", "O"]  # the words next to one that is not read are neighbors
    for row in tags:
        read = [tag for tag in row if tag is not None]
        assert read == ["B-turn" if place % 2 else "O" for place in range(len(read))]
    assert {len([tag for tag in row if tag]) for row in tags[4:5]} == {14}  # 16 tokens, of which two are special


@pytest.mark.slow
def test_artifacts_follow_transitions(folder: Path) -> None:
    rows = folder / "odd.jsonl"
    rows.write_text("".join(json.dumps({"words": row}) + "\n" for row in ODD_ROWS), encoding="utf-8")
    assert main(["export", "run=crf", "export.formats=[onnx,onnx_int8,torchscript,pt2]"]) == 0
    proved = json.loads((folder / "crf/export/manifest.json").read_text(encoding="utf-8"))["metrics"]
    measured = json.loads((folder / "crf/eval/test.json").read_text(encoding="utf-8"))
    assert {name: measured[name] for name in proved} == proved
    answers, rows_of = {}, {}
    for name, options in {
        "run": ["run=crf"],
        "graph": ["run=crf", "backend=onnx"],
        "folder": ["run=crf/export"],
    }.items():
        assert main(["predict", *options, "input=odd.jsonl", f"output={name}.jsonl", "device=cpu"]) == 0
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows_of[name] = [json.loads(line) for line in lines]
        answers[name] = predicted_tags(rows_of[name])
    script = [sys.executable, "-I", str(folder / "crf/export/predict.py"), str(rows)]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    rows_of["script"] = [json.loads(line) for line in lines]
    answers["script"] = predicted_tags(rows_of["script"])
    for name in ("graph", "folder", "script"):
        assert_close(rows_of[name], rows_of["run"])
    assert all(0 < entity["probability"] <= 1 for row in rows_of["run"] for entity in row["entities"])
    assert all(tags == answers["run"] for tags in answers.values())
    assert "`transitions.json`" in (folder / "crf/export/README.md").read_text(encoding="utf-8")

    (folder / "crf/export/transitions.json").write_text('{"start": [0], "between": [[0]], "end": [0]}')
    assert main(["predict", "run=crf", "backend=onnx", "input=odd.jsonl", "output=never.jsonl"]) == 3
    assert subprocess.run(script, capture_output=True, check=False).returncode == 3
