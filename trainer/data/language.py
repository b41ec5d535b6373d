"""Approximate lengths of texts, and the language that they are probably in, without a tokenizer or a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SCRIPTS = {
    "Japanese": re.compile(r"[\u3040-\u30ff]"),
    "Korean": re.compile(r"[\uac00-\ud7af]"),
    "Chinese": re.compile(r"[\u3400-\u9fff]"),
    "Cyrillic script": re.compile(r"[\u0400-\u04ff]"),
    "Arabic script": re.compile(r"[\u0600-\u06ff]"),
    "Devanagari script": re.compile(r"[\u0900-\u097f]"),
    "Greek": re.compile(r"[\u0370-\u03ff]"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
}
_FREQUENT_WORDS = {
    "English": "the and of to is in that it was for with this on are not you i my how what",
    "German": "der die das und ist nicht ein eine mit zu den von auf für ich es",
    "French": "le la les et est une des pas que pour dans qui sur avec je ce",
    "Spanish": "el los las y es una que de por con para no del se lo muy",
    "Italian": "il di che è una per non con sono gli della le si ma ho anche",
    "Portuguese": "o os as e é uma que não com para do da em um muito mais",
    "Dutch": "de het een en van is niet dat op met voor zijn ik te aan er",
}
_MIN_FREQUENT = 0.05
_MIN_DIFFERENT = 3
"""The number of a language's frequent words that the texts must contain: English and Portuguese share `do`."""

_LETTERS = re.compile(r"[^\W\d_]+")


def count_tokens(text: str) -> int:
    """Return the approximate number of tokens of a text: its words, and each Chinese or Japanese character."""
    return len(text.split()) if text.isascii() else len(_CJK.sub(" ", text).split()) + len(_CJK.findall(text))


def guess_language(texts: Sequence[str]) -> str:
    """Return the language or script that most of the texts are probably in; empty if none is probable."""
    content = " ".join(text[:500] for text in texts[:1_000])
    num_letters = sum(map(str.isalpha, content))
    for language, characters in _SCRIPTS.items():
        if len(characters.findall(content)) > 0.15 * num_letters:
            return language
    words = Counter(word.lower() for word in _LETTERS.findall(content))
    shares = {
        language: sum(words[word] for word in frequent.split()) / max(1, words.total())
        for language, frequent in _FREQUENT_WORDS.items()
        if len(words.keys() & set(frequent.split())) >= _MIN_DIFFERENT
    }
    language, share = max(shares.items(), key=lambda item: item[1], default=("", 0.0))
    return language if share > _MIN_FREQUENT else ""
