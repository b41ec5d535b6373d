from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.predictions import predict
from tests.support.token_targets import LAYOUTS, assert_layouts_agree, batch_of, decoder, fitted, measured
from trainer.errors import ConfigError
from trainer.task.causal_lm import CausalLm

TEXTS = [
    "Return the running event loop",
    "run the loop until it is stopped",
    "a tuple",
    "北京大学的学生 read books",
    "the event is read and the loop is running and the students read it again",
]


def task(**changes: Any) -> CausalLm:
    options: dict[str, Any] = {"max_length": 24, "vocab_size": 200, "tokenizer": None, "lowercase": False}
    return CausalLm(**(options | changes))


def made(texts: list[str] = TEXTS, **changes: Any) -> tuple[CausalLm, Dataset]:
    return fitted(task(**changes), text=texts)


def test_document_is_its_tokens_and_an_end_token() -> None:
    writer, rows = made()
    tokens = [writer.texts.tokenizer.id_to_token(number) for number in rows["input_ids"][1]]

    assert tokens == ["run", "the", "loop", "until", "it", "is", "stopped", "[SEP]"]
    assert writer.end_id == writer.texts.tokenizer.token_to_id("[SEP]")


def test_long_document_becomes_overlapping_blocks() -> None:
    long = "the loop is running again and again and again"
    writer, rows = made(["the loop is running", long, "", "the"], max_length=5)
    tokens = [[writer.texts.tokenizer.id_to_token(number) for number in ids] for ids in rows["input_ids"]]

    assert tokens == [
        ["the", "loop", "is", "running", "[SEP]"],
        ["the", "loop", "is", "running", "again"],
        ["again", "and", "again", "and", "again"],
        ["again", "[SEP]"],
        ["[SEP]"],
        ["the", "[SEP]"],
    ]
    assert list(rows["block_of"]) == [0, 1, 1, 1, 2, 3]
    assert not any(rows["truncated"])


def test_every_token_except_the_first_is_a_target_once() -> None:
    cases: list[int] = [3, 4, 5, 9, 24]
    for max_length in cases:
        writer, rows = made([TEXTS[0] * 4], max_length=max_length)
        (whole,) = writer.texts.encode_untruncated([TEXTS[0] * 4])
        for batching in LAYOUTS:
            target = batch_of(writer, rows, list(range(len(rows))), batching).target
            assert target is not None
            assert sorted(target[target != -100].tolist()) == sorted([*whole.ids[1:], writer.end_id])


def test_target_is_the_next_token_of_the_document() -> None:
    for batching in LAYOUTS:
        writer, rows = made()
        batch = batch_of(writer, rows, [4, 2, 0], batching)
        ids, target = batch.inputs["input_ids"], batch.target

        assert target is not None
        assert target.shape == ids.shape
        assert "output_index" not in batch.inputs
        # Read along the targets from each document's first token, every document comes out.
        documents = []
        starts = (ids == ids).nonzero().tolist()
        mask = batch.inputs.get("attention_mask")
        for row, column in starts:
            begins = batch.inputs["position_ids"][row, column] == 0 if mask is None else column == 0
            inside = batch.inputs["sequence_ids"][row, column] > 0 if mask is None else mask[row, column] > 0
            if begins and inside:
                document = [ids[row, column].item()]
                while target[row, column] != -100:
                    document.append(target[row, column].item())
                    column += 1
                    assert ids[row, column] == document[-1]
                documents.append(document)
        assert sorted(documents) == sorted(rows["input_ids"][number] for number in (4, 2, 0))
        assert int((target != -100).sum()) == sum(len(document) - 1 for document in documents)


def test_layouts_agree() -> None:
    for max_length in (24, 7):
        writer, rows = made(max_length=max_length)
        assert_layouts_agree(writer, rows, decoder(writer))


def test_documents_of_a_row_do_not_see_each_other() -> None:
    writer, rows = made()
    model = decoder(writer)
    batch = batch_of(writer, rows, [4, 2, 3], "packed")
    assert (batch.inputs["sequence_ids"] == 2).any()
    second = batch.inputs["sequence_ids"] == 2
    before = model(**batch.inputs)
    changed = torch.where(second, batch.inputs["input_ids"], batch.inputs["input_ids"].roll(1))
    after = model(**{**batch.inputs, "input_ids": changed})

    assert torch.equal(before[second], after[second])
    assert not torch.equal(before, after)


def test_empty_documents_have_no_target() -> None:
    writer, _ = made()
    rows = Dataset.from_dict({"text": ["", "\n"]})
    rows = rows.map(writer.encode, batched=True, remove_columns=rows.column_names)

    assert [list(ids) for ids in rows["input_ids"]] == [[writer.end_id]] * 2
    for batching in LAYOUTS:
        batch = batch_of(writer, rows, [0, 1], batching)
        assert batch.target is not None
        assert (batch.target == -100).all()


def test_perplexity_equals_that_of_single_documents() -> None:
    writer, rows = made()
    model = decoder(writer)
    log_p = []
    for ids in rows["input_ids"]:
        output = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))
        log_p += [output[0, place].log_softmax(0)[ids[place + 1]].item() for place in range(len(ids) - 1)]

    values = measured(writer, model, [batch_of(writer, rows, ids, "packed") for ids in ([0, 1, 2], [3, 4])])

    assert values["perplexity"] == pytest.approx(np.exp(-np.mean(log_p)), rel=1e-4)
    assert writer.monitor == "perplexity"
    assert {name: metric.higher_is_better for name, metric in writer.metrics().items()} == {
        "perplexity": False,
        "accuracy": True,
    }


def test_predictions_are_next_tokens_and_perplexity() -> None:
    writer, _ = made()
    size = writer.info().num_outputs
    rows = {"text": ["loop loop", "loop"]}
    loop = writer.texts.tokenizer.token_to_id("loop")
    output = torch.zeros(2, 2, size)
    output[0, 0, loop], output[0, 1, writer.end_id], output[1, 0, loop] = 2.0, 30.0, 30.0
    two, one = predict(writer, output, rows)

    others = [writer.texts.tokenizer.id_to_token(number) for number in range(6) if number != writer.end_id]
    assert [best["token"] for best in two["next"]] == ["[SEP]", *others[:4]]
    assert two["next"][0]["probability"] == pytest.approx(1.0)
    assert two["perplexity"] == pytest.approx((np.exp(2) + size - 1) / np.exp(2), rel=1e-6)
    assert one["next"][0] == {"token": "loop", "probability": pytest.approx(1.0)}
    assert one["perplexity"] is None
    assert len(predict(writer, output, rows, top=7)[0]["next"]) == 7


def test_info_and_lengths() -> None:
    writer, rows = made()

    assert writer.info().num_outputs == writer.info().vocab_size
    assert writer.info().output_level == "token"
    assert writer.lengths(rows).tolist() == [len(ids) for ids in rows["input_ids"]]


def test_artifact_tokenizer_encodes_prompts_like_documents() -> None:
    writer, rows = made()
    tokenizer = Tokenizer.from_str(writer.artifact_files()["tokenizer.json"])

    for text, ids in zip(TEXTS, rows["input_ids"], strict=True):
        assert [*tokenizer.encode(text).ids, writer.end_id] == ids
    assert writer.texts.tokenizer.encode("a").tokens == ["[CLS]", "a", "[SEP]"]


def test_user_tokenizer_needs_an_end_token(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "tuple": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(file))
    with pytest.raises(ConfigError, match="tokenizer: has no end-of-text token"):
        task(tokenizer=str(file))

    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(file))
    _, rows = made(tokenizer=str(file))
    assert rows["input_ids"][2] == [0, 1, tokenizer.token_to_id("</s>")]
