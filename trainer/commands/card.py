"""`trainer card`: a model card, README.md of a repository on a hub, about a run and its artifacts."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from trainer.commands.report_sections import (
    NamedRun,
    artifact_section,
    config_section,
    data_section,
    environment_section,
    evaluation_section,
    interval_of,
    part_name,
    shown_split,
)
from trainer.commands.run_folders import RunRecord, find_artifacts, read_run
from trainer.config.jobs import CardJob, TrainJob
from trainer.config.paths import without_folders
from trainer.display import counted, displayable, list_some, print_lines, shorten_middle
from trainer.documents import SHAPES, read_document, read_export_manifest
from trainer.errors import CheckpointError, ConfigError
from trainer.export.readme import (
    describe_answers,
    describe_limit,
    describe_model,
    describe_rows,
    graph_code,
    script_packages,
)
from trainer.files.atomic_io import refuse_to_replace, write_text
from trainer.layout import CARD, EVALUATIONS, EXPORT, PREDICT_FORMATS, PREDICT_SCRIPT, TASK, Document
from trainer.predictions import predictions_file, read_about
from trainer.report.answers import class_scores_of
from trainer.report.metric_names import words
from trainer.report.page import Section, Table, is_sealed, seal
from trainer.report.statistics import NAME, measure_baseline, read_columns
from trainer.shapes import LARGEST_DOCUMENT
from trainer.validation_sets import describe_split

FILL_IN: Final = "**To be filled in:**"
"""The start of a line that only a person can write."""

_PIPELINES: Final = {
    "text_classification": "text-classification",
    "multilabel_classification": "text-classification",
    "pair_classification": "text-classification",
    "token_classification": "token-classification",
    "sentence_embedding": "sentence-similarity",
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "image_classification": "image-classification",
    "tabular_classification": "tabular-classification",
    "tabular_regression": "tabular-regression",
}
"""The name of each task on the hub, as far as the hub has one."""

_OWN_DATA: Final = ("files", "lines", "imagefolder", "idx", "conll", "hub")
"""Options of `data` whose names say nothing about the data."""

_NOT_SHOWN: Final = ("logger.", "run.", "observers", "launch.", "sweep.", "data.cache_dir", "loader.workers")
"""Keys, or their starts, without a meaning on other machines."""

_EXAMPLE_INPUTS: Final = {"text": '"a text"', "image": "image.png", "words": '"the words of a sentence"'}
"""An example of the key `input`, by the columns that the model reads; a table of rows for all other columns."""

_MAX_CLASSES: Final = 5
_FEW_ROWS: Final = 50
"""Training targets of a class below which it counts as rare."""
_FOLDERS: Final = re.compile(r"^(?:~|\.{0,2})/.*/(?=.)|(?<![\w:/.])(?:~|\.{0,2})/(?:[^\s'\",/\]}]+/)*(?=[^\s'\",\]}])")
"""The folders of a path: of a text that is one, and in any other text."""


def run(job: CardJob, config: Document) -> None:
    """Write the card and print its path.

    Raises:
        CheckpointError: There is no such run, or it has no artifacts.
        ConfigError: The file cannot be written, or is from elsewhere.
    """
    record = read_run(job.run)
    artifacts = find_artifacts(record.folder)
    file = Path(job.output or record.folder / CARD)
    refuse_to_replace("output" if job.output else "run", file, force=job.force, is_own=_is_own_card)
    write_text(file, seal(make_card(job, record, artifacts)), ConfigError if job.output else CheckpointError)
    if not _scores(record, read_export_manifest(artifacts) or {}):
        print_lines("note: no evaluation of the exported weights is stored, so the card has no scores: trainer eval")
    print(displayable(str(file)))


def _is_own_card(path: Path) -> bool:
    return path.stat().st_size <= LARGEST_DOCUMENT and is_sealed(path.read_bytes())


def make_card(job: CardJob, record: RunRecord, artifacts: Path) -> str:
    """Return the card of a run as Markdown with front matter, without paths and secrets of this machine.

    Args:
        job: What the user says about the model.
        record: The run.
        artifacts: Its export folder.
    """
    manifest = read_export_manifest(artifacts)
    assert manifest is not None, "the folder was checked"
    # Only scores of the weights in the artifacts, on the run's own data.
    record = replace(record, config=without_folders(record.config, TrainJob), evaluations=_scores(record, manifest))
    name = displayable(str(record.config.get("run", {}).get("name") or record.folder.name), keep_lines=False)
    named = [NamedRun(name, record)]
    front = yaml.safe_dump(_front_matter(job, record, manifest, name), sort_keys=False, allow_unicode=True)
    data = data_section(named)
    sections = [
        f"---\n{front}---",
        f"# {_inline(name)}",
        " ".join(filter(None, [describe_model(manifest), describe_answers(artifacts, manifest)])),
        describe_rows(artifacts),
        _uses(),
        _loading(artifacts, manifest),
        _markdown(replace(evaluation_section(named), title="Scores with 95% intervals")),
        _scores_text(record),
        _limits(job, record, artifacts, manifest),
        _data_text(job, record),
        _markdown(replace(data, title="Rows of the data", warnings=())),
        _markdown(_only_own(artifact_section(named))),
        _training(record, manifest),
        _markdown(_portable(config_section(named))),
        _markdown(environment_section(named)),
        _terms(job),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _scores(record: RunRecord, manifest: Document) -> dict[str, Document]:
    """Return the evaluations of the weights that were exported, on the run's own data."""
    origin = manifest.get("provenance", {})
    return {
        split: scores
        for split, scores in record.evaluations.items()
        if "data" not in scores and all(scores[key] == origin.get(key) for key in ("step", "weights"))
    }


def _task_of(record: RunRecord) -> str:
    return part_name(str(record.config["task"]["_target_"]))


def _data_name(job: CardJob, record: RunRecord) -> str | None:
    """Return the name of the data: what the user says, the name on the hub, or the name of built-in data."""
    data = record.config["data"]
    option = part_name(str(data["_target_"]))
    if job.dataset is not None:
        return job.dataset
    if option == "hub" and (name := _hub_name(data)) is not None:
        return name
    is_built_in = str(data["_target_"]).startswith("trainer.data.") and option not in _OWN_DATA
    return option if is_built_in else None


def _hub_name(part: Document) -> str | None:
    """Return the name on the hub in the `path` of a part; None if it is a local path, which may be cut to its end."""
    path = part.get("path")
    return path if isinstance(path, str) and "/" in path and not os.path.exists(path) else None


def _front_matter(job: CardJob, record: RunRecord, manifest: Document, name: str) -> Document:
    task = _task_of(record)
    pipeline = _PIPELINES.get(task)
    data, model = record.config["data"], record.config["model"]
    front: Document = {
        "license": job.license,
        "language": list(job.language),
        "base_model": _hub_name(model) if model.get("pretrained") else None,
        "datasets": [_hub_name(data)] if part_name(str(data["_target_"])) == "hub" and _hub_name(data) else None,
        "pipeline_tag": pipeline,
    }
    front = {key: value for key, value in front.items() if value}
    has_graph = any(each in manifest["artifacts"] for each in PREDICT_FORMATS)
    kind = task.replace("_", "-")
    front["tags"] = ["trainer", *(["onnx"] if has_graph else []), *([] if kind == pipeline else [kind])]
    dataset = _data_name(job, record) or "unnamed"
    results = [
        {
            "task": {"type": pipeline or kind},
            "dataset": {"name": dataset, "type": dataset, "split": shown_split(stem, scores)},
            "metrics": metrics,
        }
        for stem, scores in record.evaluations.items()
        if (metrics := _metrics(scores))
    ]
    return {**front, "model-index": [{"name": name, "results": results}]} if results else front


def _metrics(scores: Document) -> list[Document]:
    """Return the metrics of an evaluation as the hub reads them; the interval is an argument of the metric."""
    listed = []
    for key, value in scores.items():
        if key in ("step", "format") or not isinstance(value, float | int) or not math.isfinite(value):
            continue
        interval = interval_of(scores, key)
        metric: Document = {"type": key, "name": words(key), "value": round(value, 6)}
        if interval is not None:
            metric["args"] = {"confidence_interval_95": [round(end, 6) for end in interval]}
        listed.append(metric)
    return listed


def _uses() -> str:
    return f"""## Uses

{FILL_IN} what the model is for, who uses it, and what it must not be used for."""


def _loading(artifacts: Path, manifest: Document) -> str:
    """Return how to load the artifacts: with the scripts in their folder, in code, and with this tool."""
    files = {entry["file"] for entry in manifest["files"]}
    rows = _EXAMPLE_INPUTS.get(",".join(manifest["reads"]), "rows.csv")
    lines = [f"cd {EXPORT}"]
    if PREDICT_SCRIPT in files:
        checks = ["python predict.py --check"] if (artifacts / "golden.json").is_file() else []
        lines += [f"pip install {script_packages(manifest)}", *checks, f"python predict.py {rows}"]
    elif "generate.py" in files:
        lines += ["pip install onnxruntime numpy tokenizers", 'python generate.py "a prompt"']
    text = "## Use the artifacts\n\n"
    if len(lines) > 1:
        text += "Without trainer and torch:\n\n```sh\n" + "\n".join(lines) + "\n```\n\n"
    if code := graph_code(artifacts, manifest):
        text += f"In Python, in the folder `{EXPORT}`:\n\n{code}\n\n"
    if PREDICT_SCRIPT in files:
        commands = f"trainer predict run={EXPORT} input={rows}\ntrainer serve run={EXPORT}"
        text += f"With trainer, next to the folder `{EXPORT}`:\n\n```sh\n{commands}\n```\n\n"
    return f"{text}`{EXPORT}/README.md` describes each file, and `{EXPORT}/manifest.json` has their checksums."


def _evaluated(record: RunRecord) -> tuple[str, Path, Document] | None:
    """Return split (in words), file and metadata of the predictions to describe; None if none belong to the scores."""
    for stem in ("test", record.monitored_evaluation):
        scores, file = record.evaluations.get(stem), predictions_file(record.folder / EVALUATIONS / f"{stem}.json")
        if scores is not None and file.is_file():
            about = read_about(file)
            if about.get("digest") == scores.get("digest"):
                return describe_split(shown_split(stem, scores)), file, about
    return None


def _scores_text(record: RunRecord) -> str:
    if not record.evaluations:
        return f"## Scores\n\n{FILL_IN} no evaluation of these weights is stored."
    evaluated = _evaluated(record)
    if evaluated is None:
        return ""
    split, file, about = evaluated
    baseline = measure_baseline(file, about["kind"], about["classes"])
    if baseline is None:
        return ""
    known = ", ".join(f"{words(key)} {value:.4f}" for key, value in baseline.scores.items())
    return f"## Comparison\n\nOn {_inline(split)}, {_inline(baseline.answer)} gives {known}."


def _limits(job: CardJob, record: RunRecord, artifacts: Path, manifest: Document) -> str:
    """Return how much the model reads, which classes are rare, and what it does worst in its stored predictions."""
    sentences = [describe_limit(manifest), _cut_rows(record), _rare_classes(artifacts)]
    parts = [" ".join(filter(None, sentences))]
    evaluated = _evaluated(record)
    if evaluated is not None:
        split, file, about = evaluated
        parts.append(_worst(split, file, about).strip())
    if {"text", "text_pair", "words"} & set(manifest["reads"]):
        named = ", ".join(map(_inline, job.language))
        known = f"Its texts are in: {named}. Nothing is known about other languages."
        parts.append(known if named else f"{FILL_IN} the languages of the texts (`language=[en]`).")
    parts.append(f"{FILL_IN} known biases, and inputs on which the model must not be used.")
    return "\n\n".join(["## Limits", *filter(None, parts)])


def _cut_rows(record: RunRecord) -> str:
    """Return the share of training rows that were longer than the model reads; "" if none were."""
    share = _training_rows(record).get("truncated")
    return f"{100 * share:.2g}% of the training rows were longer." if isinstance(share, float) and share else ""


def _training_rows(record: RunRecord) -> Document:
    """Return what the event `start` says about the rows of training; empty if it says nothing that can be used."""
    start = next((event for event in record.events if event["event"] == "start"), {})
    data = start.get("data")
    rows = data.get("train") if isinstance(data, dict) else None
    return rows if isinstance(rows, dict) else {}


def _rare_classes(artifacts: Path) -> str:
    """Return the classes with few training rows; "" if there are none, or if the task counts no classes."""
    task = read_document(artifacts / TASK, SHAPES[TASK], "Export it again: trainer export")
    pairs = zip(task.get("labels", ()), task.get("class_counts", ()), strict=False)
    rare = sorted((count, label) for label, count in pairs if count < _FEW_ROWS)
    shown = list_some([f"{_inline(shorten_middle(label, NAME))} ({count})" for count, label in rare], _MAX_CLASSES)
    return f"Classes with fewer than {_FEW_ROWS} training targets: {shown}." if rare else ""


def _training(record: RunRecord, manifest: Document) -> str:
    """Return in words how the weights were trained, and which of them were exported."""
    config, origin = record.config, manifest.get("provenance", {})
    model = config["model"]
    start = "pretrained weights" if model.get("pretrained") or model.get("weights") else "random weights"
    optimizer = config["optimizer"]
    rate = f" with a learning rate of {optimizer['lr']:g}" if isinstance(optimizer.get("lr"), float) else ""
    last: Document = record.events[-1] if record.events else {"step": 0, "epoch": 0.0}
    rows = _training_rows(record).get("rows")
    data = f"on {counted(rows, 'row')} " if isinstance(rows, int) and rows else ""
    text = (
        f"`{part_name(str(model['_target_']))}` was trained from {start} {data}with the loss "
        f"`{part_name(str(config['loss']['_target_']))}` and the optimizer `{part_name(str(optimizer['_target_']))}`"
        f"{rate}: {counted(last['step'], 'step')} of {counted(config['train']['batch_size'], 'row')}, "
        f"{last['epoch']:.3g} {'epoch' if last['epoch'] == 1 else 'epochs'}."
    )
    average = " averaged (EMA)" if origin.get("weights") == "ema" else ""
    score = _exported_score(record, origin)
    return f"## Training\n\n{text} The artifacts have the{average} weights of step {origin.get('step')}{score}."


def _exported_score(record: RunRecord, origin: Document) -> str:
    """Return the score of the exported weights, and whether it is the best of the run; "" if it is unknown."""
    score, best = origin.get("score"), record.best or {}
    is_known = isinstance(score, dict) and score.get("weights") == origin.get("weights")
    if not isinstance(score, dict) or not is_known or not isinstance(score.get("value"), int | float):
        return ""
    rank = "the best" if best.get("step") == origin.get("step") else "not the best of the run"
    split = describe_split(record.validation_sets[0])
    return f", {rank} by {words(str(score['name']))} on {_inline(split)} ({score['value']:.4g})"


def _worst(split: str, file: Path, about: Document) -> str:
    kind = about["kind"]
    if kind not in ("class", "labels", "tags", "spans", "values"):
        return ""
    if kind == "values":
        targets, predictions = read_columns(file, "target", "prediction")
        errors = sorted(abs(a - b) for a, b in zip(targets, predictions, strict=True) if isinstance(a, float))
        if not errors:
            return ""
        bound = errors[math.ceil(0.95 * len(errors)) - 1]
        return f"On {_inline(split)}, 5% of the {len(errors)} predictions are wrong by more than {bound:.4g}.\n\n"
    counts = class_scores_of(file, kind, about["classes"])
    precision, recall, f1 = counts.scores()
    present = [place for place in range(len(counts.names)) if counts.support[place]]
    worst = sorted(present, key=lambda place: (float(f1[place]), place))[:_MAX_CLASSES]
    columns = ["class", "entities" if kind in ("tags", "spans") else "rows", "precision", "recall", "F1"]
    rows = [
        [
            shorten_middle(counts.names[place], NAME),
            int(counts.support[place]),
            *(float(each[place]) for each in (precision, recall, f1)),
        ]
        for place in worst
    ]
    missing = len(counts.names) - len(present)
    note = f"\n\n{counted(missing, 'class', 'has')} no row in this split, and so no score." if missing else ""
    return f"The lowest F1 on {_inline(split)}:\n\n{_table(Table('', columns, rows))}{note}\n\n"


def _data_text(job: CardJob, record: RunRecord) -> str:
    name = _data_name(job, record)
    known = f"The data: {_inline(name)}.\n\n" if name else f"{FILL_IN} the name of the data (`dataset=NAME`).\n\n"
    return f"## Data\n\n{known}{FILL_IN} where the data come from, who labeled them, and their license."


def _terms(job: CardJob) -> str:
    if job.license is not None:
        return f"## License\n\nThe weights are under the license {_inline(job.license)}."
    return f"## License\n\n{FILL_IN} the license of the weights (`license=NAME`)."


def _only_own(section: Section) -> Section:
    """Return the proofs of the artifacts in `export/` only: artifacts of pruned copies are not in the repository."""
    proofs = section.tables[0]
    rows = [row for row in proofs.rows if str(row[1]).startswith(f"{EXPORT}/")]
    return replace(section, title="Proof against PyTorch", tables=[replace(proofs, rows=rows)])


def _portable(section: Section) -> Section:
    """Return the keys that differ from the defaults, without keys and folders of this machine."""
    changed = section.tables[0]
    rows = [
        [key, *(_FOLDERS.sub("", str(value)) for value in values)]
        for key, *values in changed.rows
        if not str(key).startswith(_NOT_SHOWN)
    ]
    return replace(section, title="", tables=[replace(changed, rows=rows)])


def _markdown(section: Section) -> str:
    """Return a section of the report as Markdown; "" without rows. The heading is the title of an only table."""
    shown = [table for table in section.tables if table.rows]
    is_titled = not section.title or len(shown) > 1
    tables = [f"{table.title}:\n\n{_table(table)}" if is_titled else _table(table) for table in shown]
    heading = [f"## {section.title}"] if section.title else []
    return "\n\n".join([*heading, *tables]) if tables else ""


def _table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in cells) + " |" for cells in lines)


def _inline(value: Any) -> str:
    """Return a value for a line of Markdown: no markup, no second line."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else displayable(str(value), keep_lines=False)
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text) if set(text) != {"-"} else text
