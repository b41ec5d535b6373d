"""Tokenizers: a WordPiece vocabulary trained on the user's texts, or a tokenizer that the user names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer import hub
from trainer.errors import ConfigError, format_error
from trainer.layout import expand_home

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ASCII_WORD = re.compile(r"[!-/:-@\[-`{-~]|[^\s!-/:-@\[-`{-~]+")
_REPEATED = 1000
"""Most words in a text that repeats one word."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def train_wordpiece(batches: Iterable[list[str]], *, vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train a WordPiece tokenizer of at most `vocab_size` entries; equal texts give equal tokenizers.

    Texts are normalized and split as BERT does (each Chinese character is a word of its own) and framed as
    `[CLS] text [SEP]`.

    Args:
        batches: The texts in batches, read once.
        vocab_size: Entries in total, special tokens included.
        lowercase: Convert texts to lower case without accents.
    """
    tokenizer = _wordpiece({}, lowercase)
    words = _count_words(tokenizer, batches, lowercase=lowercase)
    alphabet, continuing = _alphabet(words, limit=(vocab_size - len(SPECIAL_TOKENS)) // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers continuing characters in hash order, and merges depend on the numbers. Listing these
        # characters as special tokens fixes their numbers, so every process trains the same vocabulary.
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in continuing)],
        show_progress=False,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
    )
    # The words are normalized and split already.
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_repeat(_normalize_again(tokenizer, words)), trainer)
    trained = _wordpiece(learner.get_vocab(with_added_tokens=True), lowercase)
    trained.add_special_tokens(list(SPECIAL_TOKENS))
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, trained.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return trained


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _count_words(tokenizer: Tokenizer, batches: Iterable[list[str]], *, lowercase: bool) -> Counter[str]:
    words: Counter[str] = Counter()
    for batch in batches:
        # In ASCII, a regular expression has the tokenizer's rules, and is seven times as fast.
        plain = _CONTROL.sub("", " ".join(text for text in batch if text.isascii()))
        words.update(_ASCII_WORD.findall(plain.lower() if lowercase else plain))
        for text in batch:
            if not text.isascii():
                words.update(_split(tokenizer, text))
    return words


def _split(tokenizer: Tokenizer, text: str) -> list[str]:
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def _normalize_again(tokenizer: Tokenizer, words: Counter[str]) -> Counter[str]:
    """Return the words that the tokenizer makes of words; an ASCII word stays as it is."""
    again: Counter[str] = Counter()
    for word, count in words.items():
        for part in [word] if word.isascii() else _split(tokenizer, word):
            again[part] += count
    return again


def _alphabet(words: Counter[str], *, limit: int) -> tuple[list[str], list[str]]:
    """Return the most frequent characters, and the ones among them that also continue a word; at most `limit` in total.

    The library's own choice breaks ties in hash order, which differs between processes.
    """
    characters: Counter[str] = Counter()
    continuing: set[str] = set()
    for word, count in words.items():
        continuing.update(word[1:])
        for character in word:
            characters[character] += count
    chosen: list[str] = []
    for character in sorted(characters, key=lambda character: (-characters[character], character)):
        limit -= 1 + (character in continuing)
        if limit < 0:
            break
        chosen.append(character)
    return chosen, [character for character in chosen if character in continuing]


def _repeat(words: Counter[str]) -> Iterator[str]:
    """Yield texts that contain each word as often as it was counted; the library takes no counts."""
    for word in sorted(words):
        whole, rest = divmod(words[word], _REPEATED)
        for count in [*[_REPEATED] * whole, rest]:
            yield " ".join([word] * count)


def load_tokenizer(path: str) -> Tokenizer:
    """Load a tokenizer from a `tokenizer.json`, from a folder with one, from a checkpoint, or from a hub name.

    If there is no `tokenizer.json`, transformers converts the files that there are (`vocab.txt`, `merges.txt`, ...).

    Raises:
        ConfigError: The file does not exist, or it is not a tokenizer.
    """
    place = Path(expand_home(path))
    file: Path | None = place
    if place.is_dir():
        names = (name for name in ("tokenizer.json", "task.json") if (place / name).is_file())
        file = next((place / name for name in names), None)
    elif not place.is_file():
        file = _download(path)
    try:
        if file is None:
            tokenizer = _convert(path, str(place) if place.is_dir() else path)
        elif file.name == "task.json":  # a checkpoint's
            tokenizer = Tokenizer.from_str(json.loads(file.read_text(encoding="utf-8"))["tokenizer"])
        else:
            tokenizer = Tokenizer.from_file(str(file))
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise bare Exception, and a broken file can raise anything
        reason = " ".join(str(error).split())
        problem = "is not a tokenizer.json" if file else "has no tokenizer.json, and its files cannot be converted"
        raise ConfigError(format_error("tokenizer", f"{problem} ({reason})", value=path)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _download(name: str) -> Path | None:
    """Return the `tokenizer.json` of a hub name, in the hub's own cache, or None if the model has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not _HUB_NAME.fullmatch(name) or name.endswith(".json"):
        raise ConfigError(format_error("tokenizer", "no such file", "Name a tokenizer.json or its folder", value=name))
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=not hub.is_reachable()))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = "the hub cannot be reached"
    except Exception as error:  # from the network, an invalid name, missing rights
        reason = f"the hub does not provide it: {str(error).strip().splitlines()[0]}"
    remedy = (
        "Name a tokenizer.json or its folder; without a network, download it elsewhere "
        "(hf download NAME tokenizer.json)"
    )
    raise ConfigError(format_error("tokenizer", f"no such file, and {reason}", remedy, value=name))


def _convert(path: str, place: str) -> Tokenizer:
    """Return the tokenizer that transformers converts from a folder or a hub name."""
    from transformers import AutoTokenizer

    offline = not Path(place).is_dir() and not hub.is_reachable()
    converted = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=offline)
    tokenizer: Tokenizer | None = getattr(converted, "backend_tokenizer", None)
    # Without vocabulary files the library still makes a tokenizer, to which every word is unknown.
    if tokenizer is None or set(tokenizer.get_vocab()) <= set(converted.all_special_tokens):
        remedy = "Name a folder with tokenizer.json, or with config.json and vocab.txt (or vocab.json and merges.txt)"
        raise ConfigError(format_error("tokenizer", "has no vocabulary", remedy, value=path))
    return tokenizer


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id that fills rows; it is always masked, so any id serves if the vocabulary has no padding token."""
    ids = (tokenizer.token_to_id(token) for token in _PADDING)
    return next((token for token in ids if token is not None), 0)


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of unknown tokens, or None if every text can be spelled (byte-level vocabularies)."""
    token = getattr(tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def find_special_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """Return the id of the first of these tokens that the tokenizer has, or None."""
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((token_id for token_id in ids if token_id is not None), None)


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids that represent no text, int64, ascending: special tokens and the unknown token."""
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = unknown_id(tokenizer)
    return np.array(sorted(special if unknown is None else special | {unknown}), dtype=np.int64)
