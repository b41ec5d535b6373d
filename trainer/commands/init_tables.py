"""Propose a training job for a table that has been looked at: which column is what, and the task that fits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from trainer.commands.init_proposal import (
    Look,
    Proposal,
    Setting,
    image_settings,
    language_model_sizes,
    length_limit,
    length_settings,
    model_sizes,
    one_line,
    split_settings,
)
from trainer.data.cells import is_number, parse_spans, short_repr
from trainer.data.profile import ColumnProfile, TableProfile, feature_warnings, leaking_columns, warnings_of
from trainer.display import counted
from trainer.errors import DataError, format_error
from trainer.task.class_names import warn_of_equal_names

_LEAST_ROWS = 10
_MAX_TAGS = 200
_RARE = 5
_DOMINANT = 0.75
"""Share of the rows of one class from which on accuracy is a poor measure."""

_TARGET_NAMES = (
    *("label", "labels", "target", "y", "outcome", "survived", "churn", "diagnosis", "sentiment", "intent", "topic"),
    *("species", "class", "category", "score", "rating", "stars", "price", "value", "genre", "genres", "tags"),
    *("标签", "类别", "分类", "情感", "评价", "评分", "星级", "价格"),
)
"""Names of columns that are to be predicted, the most certain ones first."""

_TEXT_NAMES = (
    *("text", "content", "sentence", "review", "body", "message", "comment", "document", "question", "title"),
    *("文本", "内容", "正文", "句子", "评论", "问题", "标题"),
)
_SCORE_NAMES = ("score", "similarity", "sim", "relatedness")
_DIALOG_NAMES = (
    ("system", "system_prompt"),
    ("instruction", "prompt"),
    ("input", "context"),
    ("output", "completion", "response", "answer"),
)
"""Names of the columns of a prompt and its answer, in the order in which a language model reads them."""

_DIALOG_KINDS = ("text", "messages", "class", "constant", "identifier", "number")


def look_at_table(table: TableProfile, target: str | None, text: str | None) -> Look:
    """Return the look of a table; see `propose_for_table`."""
    proposal = propose_for_table(table, target, text)
    separators = [str(setting.value) for setting in proposal.settings if setting.key == "data.list_separator"]
    warnings = warnings_of(table, proposal.roles, separators[0] if separators else "|")
    for name in proposal.roles.get("label", ()):
        counts = _column(table, "target", name).counts
        warnings += warn_of_equal_names(counts, f"data.label={name}")
        if rare := [value for value, count in counts.items() if count < _RARE]:
            shown = ", ".join(value if value == value.strip() else repr(value) for value in rare[:_RARE])
            warnings.append(
                f"{counted(len(rare), 'class', 'has', of=len(counts))} fewer than {_RARE} rows, such as {shown}"
            )
    warnings += _incomplete_notes(table, proposal.roles)
    used = {name for names in proposal.roles.values() for name in names}
    for column in table.of_kind("mixed"):
        problems = [] if column.name in used else feature_warnings(table, column.name)
        warnings += [f"{column.name} is left out: it {text}" for text in problems]
    notes = [f"note: {note.removesuffix('.')}." for note in (*table.notes, *warnings)]
    others = _other_targets(table, proposal) if target is None else []
    return Look([*table.describe(), *notes], proposal, table.num_rows, other_targets=others)


def _incomplete_notes(table: TableProfile, roles: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield a note for each column whose empty cells cost the job their rows."""
    for role, names in roles.items():
        for name in names if role not in ("features", "labels") and names[1:] == [] else ():
            if missing := table.num_rows - len(_column(table, role, name).cells):
                yield f"{missing:,} rows have no {name} and are left out"


def propose_for_table(table: TableProfile, target: str | None = None, text: str | None = None) -> Proposal:
    """Return the job that fits a table.

    Args:
        table: The table.
        target: The column to predict; None finds it.
        text: The column of the texts; None finds it.

    Raises:
        DataError: The table fits no task.
    """
    if table.num_rows < _LEAST_ROWS:
        problem, remedy = (
            f"has only {counted(table.num_rows, 'row')}",
            f"Collect at least {_LEAST_ROWS}, better some hundreds",
        )
        raise DataError(format_error(str(table.path), problem, remedy))
    if target is None and text is None and (dialog := _dialog_columns(table)):
        return _propose_dialog(table, dialog)
    if (messages := table.of_kind("messages")) and target is None and text is None:
        return _propose_language_model(table, messages[0])
    texts = _texts(table, text, target)
    spans = [column for column in table.of_kind("spans") if target in (None, column.name)]
    if texts and spans:
        return _propose_spans(table, texts[0], spans[0])
    if text is None and target is None and (proposal := _propose_pairs(table, texts)):
        return proposal
    predicted = _find_target(table, target, texts)
    images = [column for column in table.of_kind("image") if column is not predicted]
    if images and predicted is not None and predicted.can_be_class:
        return _propose_images(table, images[0], predicted)
    if predicted is None:
        if not texts:
            raise _no_target_error(table)
        return _propose_language_model(table, texts[0])
    features = [column for column in _features(table) if column is not predicted]
    if texts and not (_is_feature_table(len(features), texts) and text is None):
        return _propose_text(table, texts[0], predicted)
    if not features:
        raise _no_target_error(table)
    return _propose_features(table, features, predicted)


def _texts(table: TableProfile, chosen: str | None, target: str | None) -> list[ColumnProfile]:
    """Return the columns of texts, the most probable first."""
    if chosen is not None:
        return [_column(table, "text", chosen)]
    texts = [column for column in table.of_kind("text", "messages") if column.name != target]
    return sorted(texts, key=lambda column: (_rank(column.name, _TEXT_NAMES), -column.mean_length))


def _column(table: TableProfile, key: str, name: str) -> ColumnProfile:
    column = next((column for column in table.columns if column.name == name), None)
    if column is None:
        names = {column.name.casefold(): column.name for column in table.columns}
        near = get_close_matches(name.casefold(), names, n=1)
        remedy = f"Did you mean {names[near[0]]}" if near else f"Its columns are {', '.join(names.values())}"
        raise DataError(format_error(key, f"is no column of {table.path}", remedy, value=name))
    return column


def _rank(name: str, names: Sequence[str]) -> int:
    """Return the place of a column's name, or of its last word, in usual names; Chinese words have no spaces."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    last = [place for place, each in enumerate(names) if not each.isascii() and name.strip().endswith(each)]
    places = [names.index(word) for word in ("".join(words), *words[-1:]) if word in names]
    return min([*places, *last], default=len(names))


def _is_feature_table(num_features: int, texts: Sequence[ColumnProfile]) -> bool:
    """Return whether numbers and classes say more about a row than its texts, the most probable text first."""
    return num_features > 2 and (not texts or texts[0].mean_length < 8)


def _find_target(table: TableProfile, chosen: str | None, texts: Sequence[ColumnProfile]) -> ColumnProfile | None:
    """Return the column to predict: by its name, or the last class, list or number.

    Texts are more often sorted into classes than measured, so a class precedes an amount in another column.
    """
    if chosen is not None:
        column = _column(table, "target", chosen)
        if column.kind in ("empty", "constant"):
            raise _one_class_error(table, column)
        _check_target(table, column)
        return column
    named = [column for column in table.columns if _rank(column.name, _TARGET_NAMES) < len(_TARGET_NAMES)]
    if named and not texts[1:] and (single := [column for column in named if column.kind == "constant"]):
        raise _one_class_error(table, single[0])
    candidates = [column for column in table.columns if _can_be_target(column)]
    order = {column.name: position for position, column in enumerate(candidates)}
    reads_text = bool(texts) and not _is_feature_table(len(_features(table)) - 1, texts)

    def preference(column: ColumnProfile) -> tuple[int, bool, int]:
        is_amount = reads_text and column.kind == "number" and not column.can_be_class
        return _rank(column.name, _TARGET_NAMES), is_amount, -order[column.name]

    return min(candidates, key=preference, default=None)


def _other_targets(table: TableProfile, proposal: Proposal) -> list[str]:
    """Return the columns that a job does not read and another job could predict; none if it reads what tells them."""
    if "features" in proposal.roles:
        return []  # what such a job leaves out gives its target away, or numbers the rows
    used = {name for names in proposal.roles.values() for name in names}
    return [each.name for each in table.columns if _can_be_target(each) and each.name not in used]


def _can_be_target(column: ColumnProfile) -> bool:
    return column.can_be_class or column.kind in ("list", "number")


def _check_target(table: TableProfile, column: ColumnProfile) -> None:
    """Raise one DataError if no task can predict a column that the user has chosen."""
    if _can_be_target(column) or all(map(is_number, column.counts)):
        return
    first = next((value for value in column.counts if not is_number(value)), "")
    problems = {
        "mixed": f"has texts such as {short_repr(first)} among its numbers",
        "date": f"has dates such as {short_repr(first)}",
        **dict.fromkeys(("image", "messages", "spans", "other"), "has neither classes nor numbers"),
    }
    problem = problems.get(column.kind, f"has {len(column.counts):,} different texts in {len(column.cells):,} rows")
    others = [each.name for each in table.columns if _can_be_target(each)]
    choice = f", or choose another column: {', '.join(others)}" if others else ""
    remedy = f"Write classes that repeat, or numbers such as 1234.5 and nothing for a missing one{choice}"
    raise DataError(format_error("target", problem, remedy, value=column.name))


def _features(table: TableProfile) -> list[ColumnProfile]:
    return [column for column in table.columns if column.kind in ("number", "class")]


def _propose_pairs(table: TableProfile, texts: Sequence[ColumnProfile]) -> Proposal | None:
    """Return the job for columns of words and tags, or for several texts in a row; None for other tables."""
    if (tagged := _words_and_tags(table)) is not None:
        return _propose_tags(table, *tagged)
    others = [
        column for column in table.columns if column.kind not in ("text", "identifier", "mixed", "constant", "empty")
    ]
    by_place = sorted(texts, key=lambda column: [each.name for each in table.columns].index(column.name))
    if len(texts) not in (2, 3) or len(others) > 1:
        return None
    names = [column.name for column in by_place]
    columns = [Setting("data.text", names[0])]
    if not others:
        roles = ("positive", "negative") if len(texts) == 3 else ("positive",)
        columns += [Setting(f"data.columns.{role}", name) for role, name in zip(roles, names[1:], strict=True)]
        supervision = "triplets" if len(texts) == 3 else "pairs"
        summary = f"Learn embeddings in which {names[0]} and {names[1]} of a row are close"
        settings = [*columns, Setting("task.supervision", supervision), *_text_sizes(table, by_place)]
        return _proposal(
            table, summary, "sentence_embedding", settings, dict(zip(("text", *roles), names, strict=True))
        )
    (target,) = others
    if len(texts) == 3:
        return None
    if target.kind == "number" and (not target.can_be_class or _rank(target.name, _SCORE_NAMES) < len(_SCORE_NAMES)):
        columns += [Setting("data.columns.text_pair", names[1]), Setting("data.columns.score", target.name)]
        summary = f"Learn embeddings whose similarity is {target.name} of {names[0]} and {names[1]}"
        middle = sorted(float(score) for score in target.counts)[len(target.counts) // 2]
        comment = f"texts with at least this {target.name} are similar"
        threshold = Setting("task.threshold", middle, one_line(comment))
        settings = [*columns, Setting("task.supervision", "scored"), threshold, *_text_sizes(table, by_place)]
        roles_of = {"text": names[0], "text_pair": names[1], "score": target.name}
        return _proposal(table, summary, "sentence_embedding", settings, roles_of, loss="cosine_embedding")
    if not target.can_be_class:
        return None
    columns += [Setting("data.columns.text_pair", names[1]), Setting("data.label", target.name)]
    summary = f"Predict {target.name} ({len(target.counts)} classes) of {names[0]} and {names[1]}"
    settings = [*columns, *_text_sizes(table, by_place, "decomposable_attention")]
    roles_of = {"text": names[0], "text_pair": names[1], "label": target.name}
    return _proposal(table, summary, "pair_classification", settings, roles_of, model="decomposable_attention")


def _words_and_tags(table: TableProfile) -> tuple[ColumnProfile, ColumnProfile] | None:
    """Return a column of words and the column of their tags: lists, or texts split at white space."""
    columns = [column for column in table.of_kind("list", "text", "class") if column.separator is None]
    for words in columns:
        for tags in columns:
            if words is tags or (words.kind == "list") != (tags.kind == "list"):
                continue
            first, second = _parts(words), _parts(tags)
            if list(map(len, first)) != list(map(len, second)) or sum(map(len, first)) < 3 * len(first):
                continue
            if words.kind != "list" and len({*map(len, first)}) == 1:
                continue  # texts of one length prove nothing
            num_words, num_tags = (len({part for parts in lists for part in parts}) for lists in (first, second))
            if num_tags <= _MAX_TAGS and num_words > num_tags:
                return words, tags
    return None


def _parts(column: ColumnProfile) -> list[list[str]]:
    return [cell.split() if isinstance(cell, str) else list(map(str, cell)) for cell in column.cells]  # type: ignore[call-overload]


def _propose_tags(table: TableProfile, words: ColumnProfile, tags: ColumnProfile) -> Proposal:
    lists = _parts(words)
    lengths = sorted(map(len, lists))
    columns = [Setting("data.columns.words", words.name), Setting("data.columns.tags", tags.name)]
    if words.kind != "list":
        columns.append(Setting("data.list_separator", " "))
    longest = Setting("task.max_length", length_limit(lengths[int(0.95 * (len(lengths) - 1))]))
    num_tags = len({tag for parts in _parts(tags) for tag in parts})
    settings = [*columns, longest, *model_sizes("text_encoder", table.num_rows)]
    summary = f"Tag each word of {words.name} with one of {num_tags} {tags.name}"
    return _proposal(table, summary, "token_classification", settings, {"words": words.name, "tags": tags.name})


def _propose_spans(table: TableProfile, text: ColumnProfile, spans: ColumnProfile) -> Proposal:
    places = [column.name for column in table.columns]
    rows = [(row[places.index(text.name)], parse_spans(row[places.index(spans.name)])) for row in table.first_rows]
    end = "inclusive" if _ends_are_inclusive(rows) else "exclusive"
    comment = "the end of a span is its last character" if end == "inclusive" else "the end is after the last character"
    settings = [
        Setting("data.text", text.name),
        Setting("data.columns.spans", spans.name),
        Setting("task.span_end", end, comment),
        *_text_sizes(table, [text]),
    ]
    summary = f"Find {counted(len(spans.counts), 'kind')} of {spans.name} in {text.name}, which may be in each other"
    return _proposal(table, summary, "span_classification", settings, {"text": text.name, "spans": spans.name})


def _ends_are_inclusive(rows: Sequence[tuple[object, Sequence[Mapping[str, Any]] | None]]) -> bool:
    """Return whether spans have a single character from a place to itself, or mostly end before the end of a word."""
    cut = whole = 0
    for text, spans in rows:
        for start, end in ((span["start"], span["end"]) for span in spans or ()):
            if start == end:
                return True
            if isinstance(text, str) and 0 < end < len(text) and text[end - 1].isascii():
                is_cut = text[end - 1].isalnum() and text[end].isalnum()
                cut, whole = cut + is_cut, whole + (not is_cut)
    return cut > whole


def _propose_text(table: TableProfile, text: ColumnProfile, target: ColumnProfile) -> Proposal:
    sizes = _text_sizes(table, [text])
    columns = [Setting("data.text", text.name)]
    if target.kind == "list":
        columns.append(Setting("data.columns.labels", target.name))
        if target.separator not in (None, "|"):
            columns.append(Setting("data.list_separator", target.separator))
        summary = f"Predict the {target.name} of {text.name}, several of {len(target.counts)} labels at once"
        roles = {"text": text.name, "labels": target.name}
        return _proposal(table, summary, "multilabel_classification", [*columns, *sizes], roles)
    if target.can_be_class:
        columns.append(Setting("data.label", target.name))
        summary = f"Predict {target.name} ({len(target.counts)} classes) from {text.name}"
        roles = {"text": text.name, "label": target.name}
        return _proposal(table, summary, "text_classification", [*columns, *sizes], roles)
    columns.append(Setting("data.columns.value", target.name))
    summary = f"Predict the number {target.name} from {text.name}"
    return _proposal(table, summary, "regression", [*columns, *sizes], {"text": text.name, "value": target.name})


def _propose_features(table: TableProfile, features: Sequence[ColumnProfile], target: ColumnProfile) -> Proposal:
    names = [column.name for column in features]
    leaks = leaking_columns(table, names, target.name)
    names = [name for name in names if name not in leaks]
    if leaks:
        table.notes.append(f"{', '.join(leaks)} would give {target.name} away, and so is left out")
    if not names:
        raise _no_target_error(table)
    omitted = [column.name for column in table.columns if column is not target and column.name not in names]
    for column in table.of_kind("date"):
        table.notes.extend(f"{column.name} is left out: it {text}" for text in feature_warnings(table, column.name))
    comment = f"left out: {', '.join(omitted)}" if omitted else "the columns to predict from"
    is_class = target.can_be_class
    columns = [Setting("data.label", target.name)] if is_class else [Setting("data.columns.value", target.name)]
    columns.append(Setting("data.columns.features", names, one_line(comment)))
    task, role = ("tabular_classification", "label") if is_class else ("tabular_regression", "value")
    predicted = f"{target.name} ({len(target.counts)} classes)" if is_class else f"the number {target.name}"
    summary = f"Predict {predicted} from {names[0] if len(names) == 1 else f'{len(names)} columns'}"
    settings = [*columns, *model_sizes("mlp", table.num_rows)]
    return _proposal(table, summary, task, settings, {role: target.name}, features=names)


def _propose_images(table: TableProfile, image: ColumnProfile, target: ColumnProfile) -> Proposal:
    columns = [Setting("data.columns.image", image.name), Setting("data.label", target.name)]
    summary = f"Predict {target.name} ({len(target.counts)} classes) of the images in {image.name}"
    roles = {"image": image.name, "label": target.name}
    return _proposal(table, summary, "image_classification", [*columns, *image_settings(None)], roles)


def _propose_language_model(table: TableProfile, text: ColumnProfile) -> Proposal:
    summary = f"Learn to continue the texts in {text.name}"
    comment = "a conversation is one text, with a line `role: content` for each message"
    settings = [Setting("data.text", text.name, comment if text.kind == "messages" else ""), *language_model_sizes()]
    return _proposal(table, summary, "causal_lm", settings, {"text": text.name})


def _dialog_columns(table: TableProfile) -> list[ColumnProfile]:
    """Return the columns of a prompt and its answer in the order of `_DIALOG_NAMES`; none for other tables."""
    by_name = {column.name.lower(): column for column in table.columns if column.kind in _DIALOG_KINDS}
    parts = [next((by_name[name] for name in names if name in by_name), None) for names in _DIALOG_NAMES]
    _, prompt, _, answer = parts
    if prompt is None or answer is None or answer.can_be_class or answer.kind == "constant":
        return []
    return [column for column in parts if column is not None]


def _propose_dialog(table: TableProfile, columns: Sequence[ColumnProfile]) -> Proposal:
    names = [column.name for column in columns]
    summary = f"Learn to answer the texts in {' and '.join(names[:-1])} with {names[-1]}"
    comment = "a row is one text, with a line `column: cell` for each cell that is not empty"
    settings = [Setting("data.text", names, comment), *language_model_sizes()]
    return _proposal(table, summary, "causal_lm", settings, {"text": names})


def _proposal(
    table: TableProfile,
    summary: str,
    task: str,
    settings: Sequence[Setting],
    roles: Mapping[str, str | list[str]],
    *,
    model: str | None = None,
    loss: str | None = None,
    features: Sequence[str] = (),
) -> Proposal:
    first = [Setting("data.train", str(table.path))]
    if table.separator is not None:
        first.append(Setting("data.separator", table.separator))
    columns = [setting for setting in settings if setting.key.startswith("data.")]
    others = [setting for setting in settings if not setting.key.startswith("data.")]
    others += [*length_settings(table.num_rows, is_whole=table.is_whole), *_monitor_settings(table, roles.get("label"))]
    ordered = [*first, *columns, *split_settings(table.num_rows), *others]
    listed = {role: [name] if isinstance(name, str) else name for role, name in roles.items()}
    listed |= {"features": list(features)} if features else {}
    return Proposal(one_line(summary), task, "files", ordered, model, loss, listed)


def _monitor_settings(table: TableProfile, label: str | list[str] | None) -> list[Setting]:
    """Return the metric that picks the best weights if most rows have one class: always answering it is accurate."""
    counts = _column(table, "target", label).counts if isinstance(label, str) else Counter[str]()
    if not counts or max(counts.values()) < _DOMINANT * counts.total():
        return []
    value, count = counts.most_common(1)[0]
    comment = f"accuracy says little: {count / counts.total():.0%} of the rows are {one_line(value)}"
    return [Setting("checkpoint.monitor", "macro_f1", comment)]


def _text_sizes(table: TableProfile, texts: Sequence[ColumnProfile], model: str = "text_encoder") -> list[Setting]:
    length = sum(column.long_length for column in texts) if len(texts) > 1 else texts[0].long_length
    comment = "tokens; 95% of the texts are shorter" if length < 300 else "tokens; longer texts are truncated"
    limit = Setting("task.max_length", length_limit(length), comment)
    return [limit, *model_sizes(model, table.num_rows)]


def _one_class_error(table: TableProfile, column: ColumnProfile) -> DataError:
    value = next(iter(column.counts), "")
    problem = f"column {column.name!r} has one class only, so there is nothing to learn"
    remedy = "Add rows of other classes, or name the column to predict: target=COLUMN"
    return DataError(format_error(str(table.path), problem, remedy, value=value))


def _no_target_error(table: TableProfile) -> DataError:
    listed = ", ".join(f"{column.name} ({column.kind})" for column in table.columns)
    problem = "has no texts to read, and no column that others could predict"
    return DataError(format_error(str(table.path), problem, f"Its columns are {listed}. Add the column to predict"))
