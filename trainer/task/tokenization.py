"""Tokenizers: a WordPiece vocabulary learnt from texts, or one given as a file."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer import hub
from trainer.errors import ConfigError, format_error

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def learn_wordpiece(batches: Iterable[list[str]], *, vocab_size: int, lowercase: bool) -> Tokenizer:
    """A WordPiece tokenizer of at most `vocab_size` entries; the same texts give the same one.

    Texts are normalized and split as BERT's are (each Chinese character is a word of its own) and framed as
    `[CLS] text [SEP]`.

    Args:
        batches: The texts, in batches, once through.
        vocab_size: Entries in all, special tokens included.
        lowercase: Lower case and no accents.
    """
    tokenizer = _wordpiece({}, lowercase)
    words = _count_words(tokenizer, batches)
    alphabet, continuing = _alphabet(words, limit=(vocab_size - len(SPECIAL_TOKENS)) // 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers continuing characters in hash order, and merges depend on the numbers: fixing
        # theirs, as if they were special tokens, makes the vocabulary the same in every process.
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *(f"##{character}" for character in continuing)],
        show_progress=False,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
    )
    tokenizer.train_from_iterator(_repeat(words), trainer)
    learnt = _wordpiece(tokenizer.get_vocab(with_added_tokens=True), lowercase)
    learnt.add_special_tokens(list(SPECIAL_TOKENS))
    learnt.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, learnt.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return learnt


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lowercase, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, of the folder that holds one, of a checkpoint, or of a name on the hub.

    Where there is no such file, transformers makes the tokenizer of what there is (`vocab.txt`, `merges.txt`, ...).

    Raises:
        ConfigError: There is no such file, or it is not a tokenizer.
    """
    place = Path(path).expanduser()
    file: Path | None = place
    if place.is_dir():
        names = (name for name in ("tokenizer.json", "task.json") if (place / name).is_file())
        file = next((place / name for name in names), None)
    elif not place.is_file():
        file = _fetched(path)
    try:
        if file is None:
            tokenizer = _converted(path, str(place) if place.is_dir() else path)
        elif file.name == "task.json":  # a checkpoint's
            tokenizer = Tokenizer.from_str(json.loads(file.read_text(encoding="utf-8"))["tokenizer"])
        else:
            tokenizer = Tokenizer.from_file(str(file))
    except ConfigError:
        raise
    except Exception as error:  # the libraries raise bare Exception, and whatever a broken file leads to
        reason = " ".join(str(error).split())
        what = "not a tokenizer.json" if file else "no tokenizer.json in it, and none can be made of what there is"
        raise ConfigError(format_error("tokenizer", f"{what} ({reason})", value=path)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _fetched(name: str) -> Path | None:
    """The `tokenizer.json` of a name on the hub, in the hub's own cache; None where the model has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not _HUB_NAME.fullmatch(name) or name.endswith(".json"):
        raise ConfigError(format_error("tokenizer", "no such file", "Give a tokenizer.json or its folder", value=name))
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=not hub.reachable()))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = "the hub cannot be reached"
    except Exception as error:  # of the network, of the name, of rights
        reason = f"the hub does not give it: {str(error).strip().splitlines()[0]}"
    remedy = (
        "Give a tokenizer.json or its folder; without a network, fetch it elsewhere (hf download NAME tokenizer.json)"
    )
    raise ConfigError(format_error("tokenizer", f"no such file, and {reason}", remedy, value=name))


def _converted(path: str, place: str) -> Tokenizer:
    """The tokenizer that transformers makes of a folder or a name."""
    from transformers import AutoTokenizer

    offline = not Path(place).is_dir() and not hub.reachable()
    made = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=offline)
    tokenizer: Tokenizer | None = getattr(made, "backend_tokenizer", None)
    # Without its vocabulary the library makes a tokenizer all the same, to which every word is unknown.
    if tokenizer is None or set(tokenizer.get_vocab()) <= set(made.all_special_tokens):
        remedy = "Give a folder with tokenizer.json, or with vocab.txt or vocab.json and merges.txt beside config.json"
        raise ConfigError(format_error("tokenizer", "there is no vocabulary in it", remedy, value=path))
    return tokenizer


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that fills rows; masked everywhere, so any valid id serves where a vocabulary has no padding token."""
    ids = (tokenizer.token_to_id(token) for token in _PADDING)
    return next((token for token in ids if token is not None), 0)


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what the vocabulary does not know; None where every text can be spelled (byte-level vocabularies)."""
    token = getattr(tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def _count_words(tokenizer: Tokenizer, batches: Iterable[list[str]]) -> Counter[str]:
    words: Counter[str] = Counter()
    for batch in batches:
        for text in batch:
            normalized = tokenizer.normalizer.normalize_str(text)
            words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    return words


def _alphabet(words: Counter[str], *, limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, and those of them that also continue a word; at most `limit` in all.

    The library's own choice breaks ties by hash order, anew in each process.
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


def _repeat(words: Counter[str]) -> Iterator[list[str]]:
    for word in sorted(words):
        yield [word] * words[word]
