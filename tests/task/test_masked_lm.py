from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.predictions import predict
from tests.support.token_targets import LAYOUTS, assert_layouts_agree, batch_of, encoder, fitted, measured
from trainer.errors import ConfigError
from trainer.protocols import Batching
from trainer.task.masked_lm import MaskedLm, choose_tokens, mask_tokens
from trainer.task.tokenization import special_ids, train_wordpiece

TEXTS = [
    "return the running event loop",
    "run the loop until it is stopped, or unstoppable!",
    "a tuple",
    "北京大学的学生 read unreadable books",
    "the event is read and the loop is running and the students are studying it again",
]


def task(**changes: Any) -> MaskedLm:
    options: dict[str, Any] = {"max_length": 20, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return MaskedLm(**({**options, "mask_share": 0.15, "whole_words": False} | changes))


def made(texts: list[str] = TEXTS, **changes: Any) -> tuple[MaskedLm, Dataset]:
    return fitted(task(**changes), text=texts)


def test_special_and_unknown_tokens_have_no_word() -> None:
    masker, rows = made()
    columns = masker.encode({"text": ["the loop 龍 [SEP] it"]})

    assert columns["word_ids"][0].tolist() == [-1, 0, 1, -1, -1, 4, -1]
    assert rows["word_ids"][3][:9].count(-1) == 1  # [CLS]


def test_word_ids_group_pieces_and_separate_chinese_characters() -> None:
    masker, _ = made(["loop pool 大 学"] * 9)
    encoding = masker.texts.tokenizer.encode("pololo大学")
    words = masker.encode({"text": ["pololo大学"]})["word_ids"][0].tolist()

    assert encoding.tokens[-3:-1] == ["大", "学"]
    assert words == [-1, *[0] * (len(words) - 4), 1, 2, -1]
    assert len(words) > 5


def test_chosen_tokens_are_masked_80_random_10_kept_10_percent() -> None:
    masker, rows = made(["the loop is running and read again by it " * 22] * 2, max_length=200)
    tokenizer = masker.texts.tokenizer
    special = special_ids(tokenizer)
    hidden, seen = [], []
    for epoch in range(150):
        batch = batch_of(masker, rows, [0, 1], "packed", epoch=epoch)
        index = batch.inputs["output_index"]
        assert batch.target is not None
        kept = index >= 0
        seen.append(batch.inputs["input_ids"].flatten()[index[kept]].numpy())
        hidden.append(batch.target[kept].numpy())
    now, was = np.concatenate(seen), np.concatenate(hidden)
    masked, same = now == tokenizer.token_to_id("[MASK]"), now == was
    others = now[~masked & ~same]
    spread = 4 * np.sqrt(0.8 * 0.2 / len(now))

    assert len(now) > 8000
    assert abs(masked.mean() - 0.8) < spread
    # A random token is the old one once in as many as there are.
    ordinary = tokenizer.get_vocab_size() - len(special)
    assert abs(same.mean() - 0.1 - 0.1 / ordinary) < spread
    assert not np.isin(others, special).any()
    assert len(np.unique(others)) > 0.9 * ordinary
    assert not np.isin(was, special).any()


def test_every_sample_has_a_target_and_other_tokens_are_unchanged() -> None:
    masker, rows = made(whole_words=True)
    for epoch in range(50):
        batch = batch_of(masker, rows, range(5), "padded", epoch=epoch)
        assert batch.target is not None
        assert ((batch.target != -100).sum(dim=1) >= 1).all()
        for number, ids in enumerate(rows["input_ids"]):
            now, target = batch.inputs["input_ids"][number, : len(ids)], batch.target[number, : len(ids)]
            assert torch.where(target == -100, now, target).tolist() == ids


def masks_of(
    masker: MaskedLm, rows: Dataset, batching: Batching, ids: list[int], **at: int
) -> dict[int, list[tuple[int, int]]]:
    """Return the masked id and the target of each chosen token, by sample."""
    batch = batch_of(masker, rows, ids, batching, **at)
    assert batch.target is not None
    index = batch.inputs.get("output_index")
    if index is None:
        index = torch.arange(batch.target.numel()).view_as(batch.target).masked_fill(batch.target < 0, -1)
    by_sample = {}
    for sample, places, targets in zip(ids, index, batch.target, strict=True):
        masked = batch.inputs["input_ids"].flatten()[places[places >= 0]]
        by_sample[sample] = list(zip(masked.tolist(), targets[targets >= 0].tolist(), strict=True))
    return by_sample


def test_mask_depends_only_on_seed_epoch_and_sample() -> None:
    masker, rows = made()
    for batching in LAYOUTS:
        masks = partial(masks_of, masker, rows, batching)
        whole = masks([0, 1, 2, 3, 4])

        assert whole == masks([4, 3, 2, 1, 0]) == masks([0]) | masks([3, 1]) | masks([2, 4])
        assert whole != masks([0, 1, 2, 3, 4], epoch=1)
        assert whole != masks([0, 1, 2, 3, 4], seed=1)


def test_packed_batches_request_only_chosen_tokens() -> None:
    masker, rows = made(mask_share=0.5)
    batch = batch_of(masker, rows, range(5), "packed")
    index = batch.inputs["output_index"]

    assert batch.target is not None
    assert index.shape == batch.target.shape
    assert index.shape[0] == 5
    assert ((index < 0) == (batch.target == -100)).all()
    assert batch.inputs["token_index"].shape[0] == 5


def test_layouts_agree() -> None:
    for whole_words in (False, True):
        masker, rows = made(whole_words=whole_words, mask_share=0.3)
        assert_layouts_agree(masker, rows, encoder(masker))


def test_texts_without_an_eligible_token_have_no_target() -> None:
    masker, _ = made()
    rows = Dataset.from_dict({"text": ["", "龍 龍"]})
    rows = rows.map(masker.encode, batched=True, remove_columns=rows.column_names)
    for batching in LAYOUTS:
        batch = batch_of(masker, rows, [0, 1], batching)
        assert batch.target is not None
        assert (batch.target == -100).all()
        assert encoder(masker)(**batch.inputs).shape[:-1] == batch.target.shape


def test_info_has_one_output_per_token_of_the_vocabulary() -> None:
    info = made()[0].info()

    assert info.num_outputs == info.vocab_size
    assert info.output_level == "token"


def test_long_texts_become_blocks_that_cover_every_token() -> None:
    long = "the loop is running again and again and again " * 3
    masker, rows = made(["the loop is running", long, ""], max_length=8)
    (whole,) = masker.texts.encode_untruncated([long])
    of_long = [ids for ids, row in zip(rows["input_ids"], rows["block_of"], strict=True) if row == 1]
    words = [words for words, row in zip(rows["word_ids"], rows["block_of"], strict=True) if row == 1]

    assert list(rows["block_of"]) == [0, 1, 1, 1, 1, 1, 2]
    assert np.concatenate([ids[1:-1] for ids in of_long]).tolist() == whole.ids
    assert np.concatenate([word_ids[1:-1] for word_ids in words]).tolist() == whole.word_ids
    ends = [masker.texts.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")]
    assert all([ids[0], ids[-1]] == ends for ids in of_long)
    assert not any(rows["truncated"])
    assert masker.check({"train": rows}) == []


def test_metrics_have_directions() -> None:
    masker, rows = made()
    metrics = masker.metrics()
    values = measured(masker, encoder(masker), [batch_of(masker, rows, range(5), "packed")])

    assert {name: metric.higher_is_better for name, metric in metrics.items()} == {
        "perplexity": False,
        "accuracy": True,
    }
    assert masker.monitor in values
    assert values["perplexity"] > 1


def test_prediction_rows_have_one_mask_within_the_length() -> None:
    masker, _ = made()
    long = " ".join(["x"] * 3 * masker.texts.max_length)
    prompts = masker.prediction_rows({"text": ["one", "one two three", long]})

    assert prompts["text"][:2] == ["[MASK]", "one [MASK] three"]
    assert [text.count("[MASK]") for text in prompts["text"]] == [1, 1, 1]
    assert masker.texts.tokenizer.token_to_id("[MASK]") in masker.encode_inputs(prompts)["input_ids"][2]


def test_predictions_fill_the_masks() -> None:
    cases: list[Batching] = ["padded", "packed"]
    for batching in cases:
        masker, _ = made()
        tokenizer = masker.texts.tokenizer
        vocabulary = tokenizer.get_vocab()
        word = next(token for token in sorted(vocabulary) if token.isalpha() and len(token) > 2)
        part = next(token for token in sorted(vocabulary) if token.startswith("##"))
        rows = {"text": ["a [MASK], b [MASK]!", "no mask", "[MASK]" + " x" * masker.texts.max_length + " [MASK]"]}
        encoded = masker.encode_inputs(rows)
        output = torch.zeros(3, 2, len(vocabulary))
        output[0, 0, vocabulary[word]] = output[0, 1, vocabulary[part]] = output[2, 0, vocabulary[word]] = 20.0
        if batching == "padded":
            wide = torch.zeros(3, masker.texts.max_length, len(vocabulary))
            for row, ids in enumerate(encoded["input_ids"]):
                places = np.flatnonzero(ids == vocabulary["[MASK]"])
                wide[row, places] = output[row, : len(places)]
            output = wide
        filled, plain, cut = predict(masker, output, rows, batching)

        assert filled["text"] == f"a {word}, b{part[2:]}!"
        assert [token["token"] for token in filled["filled"]] == [word, part]
        size = len(vocabulary)
        assert filled["filled"][0]["probability"] == pytest.approx(np.exp(20) / (np.exp(20) + size - 1), abs=1e-6)
        assert plain == {"text": "no mask", "filled": []}
        assert cut["text"].startswith(f"{word} x")
        assert cut["text"].endswith("[MASK]")
        assert cut["filled"][1] is None
        assert len(predict(masker, output, rows, batching, top=3)[0]["filled"][0]["probabilities"]) == 3


def test_mask_share_outside_0_to_1_is_an_error() -> None:
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match=r"^mask_share: must be"):
            task(mask_share=share)


def test_unsuitable_tokenizers_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    plain = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.save(str(file))
    with pytest.raises(ConfigError, match=r"tokenizer: has no mask token \(\[MASK\], <mask>\)"):
        task(tokenizer=str(file))

    plain.add_special_tokens(["<mask>"])
    plain.pre_tokenizer = None
    plain.save(str(file))
    assert task(tokenizer=str(file)).texts.user_tokenizer is not None
    with pytest.raises(ConfigError, match="whole_words: the tokenizer does not split texts into words"):
        task(tokenizer=str(file), whole_words=True)


def test_user_tokenizer_masks_with_its_own_token(tmp_path: Path) -> None:
    tokenizer = train_wordpiece([TEXTS], vocab_size=150, lowercase=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    masker, rows = made(tokenizer=str(tmp_path))
    inputs = batch_of(masker, rows, range(5), "padded").inputs

    assert (inputs["input_ids"] == tokenizer.token_to_id("[MASK]")).any()


def chosen_tokens(words: list[int], share: float, whole_words: bool, seed: int) -> list[int]:
    places: list[int] = choose_tokens(np.array(words), share, whole_words, np.random.default_rng(seed)).tolist()
    return places


@given(
    st.lists(st.integers(1, 4), max_size=40), st.sampled_from([0.05, 0.15, 0.5, 0.9]), st.booleans(), st.integers(0, 99)
)
def test_number_of_chosen_tokens_is_within_one_unit(
    sizes: list[int], share: float, whole_words: bool, seed: int
) -> None:
    words = [-1, *(number for number, size in enumerate(sizes) for _ in range(size)), -1]
    tokens = chosen_tokens(words, share, whole_words, seed)
    expected, largest = share * sum(sizes), max(sizes, default=1) if whole_words else 1

    assert tokens == sorted(set(tokens))
    assert all(words[place] >= 0 for place in tokens)
    assert bool(tokens) == bool(sizes)
    assert len(tokens) < expected + largest or len(tokens) == largest
    assert len(tokens) > expected - largest
    if whole_words:
        numbers = [words[place] for place in tokens]
        assert all(numbers.count(number) == sizes[number] for number in numbers)
    elif sizes:
        assert len(tokens) in (max(1, int(expected)), max(1, int(expected) + 1))


@pytest.mark.parametrize(("sizes", "whole_words"), [([1] * 45, False), ([3, 1, 2, 1, 1, 4, 2, 1] * 6, True)])
def test_share_is_exact_on_average(sizes: list[int], whole_words: bool) -> None:
    words = [number for number, size in enumerate(sizes) for _ in range(size)]
    trials = 4000
    counts = np.zeros(len(words))
    for seed in range(trials):
        counts[chosen_tokens(words, 0.15, whole_words, seed)] += 1

    # The total's spread is below one unit a sample, each token's is that of a coin.
    assert abs(counts.sum() / trials - 0.15 * len(words)) < 4 * max(sizes) / np.sqrt(trials)
    assert np.abs(counts / trials - 0.15).max() < (5 if whole_words else 4.5) * np.sqrt(0.15 * 0.85 / trials)


def test_other_tokens_stay_unchanged() -> None:
    ids, places = np.arange(10, 40, dtype=np.int32), np.arange(0, 30, 3)
    for seed in range(50):
        seen = mask_tokens(ids, places, 4, np.array([7, 8]), np.random.default_rng(seed))
        changed = np.flatnonzero(seen != ids)
        assert set(changed) <= set(places)
        assert set(seen[changed]) <= {4, 7, 8}
        assert seen.dtype == ids.dtype
    assert ids.tolist() == list(range(10, 40))
