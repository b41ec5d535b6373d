"""Tokenizers: a WordPiece vocabulary learnt from texts, or one given as a file."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.errors import ConfigError, explain

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")


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
    """The tokenizer of a `tokenizer.json`, or of the folder that holds one.

    Raises:
        ConfigError: There is no such file, or it is not a tokenizer.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(explain("tokenizer", "no such file", "Give a tokenizer.json or its folder", value=path))
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(explain("tokenizer", f"not a tokenizer.json ({error})", value=path)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
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
