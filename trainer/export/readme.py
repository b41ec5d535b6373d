"""The README.md of an export folder, for recipients who have never seen this tool."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer.display import displayable, escape_controls, list_some, shorten_middle
from trainer.documents import SHAPES, read_document
from trainer.errors import CheckpointError
from trainer.layout import (
    EXPORT_MANIFEST,
    GOLDEN_ARRAYS,
    GOLDEN_ROWS,
    GOLDEN_TENSORS,
    PREDICT_FORMATS,
    PREDICT_SCRIPT,
    TASK,
    TRANSITIONS,
    Document,
)
from trainer.shapes import to_json

README: Final = "README.md"

_NOUNS: Final = {
    "text": "a text",
    "text_pair": "a second text",
    "words": "words",
    "image": "an image",
    "features": "the cells of a row of a table",
}
_TASKS: Final = {"CausalLm": "language modeling", "MaskedLm": "masked language modeling"}
"""Names of tasks that their class does not give."""

_ANSWERS: Final = {
    "classes": "The answer is the most likely one of {labels} labels, with its probability.",
    "labels": "The answer is each of {labels} labels that is likely enough, possibly none, and the probabilities.",
    "embeddings": "The answer is a vector of {size} numbers. Similar inputs have vectors with a large cosine.",
    "tags": "The answer is a tag for each word, and the entities that the tags mark.",
    "spans": "The answer is the entities of the text, with their types and places; one may be inside another.",
    "masked": "The answer is the most likely token at each mask token, with its probability.",
    "next_tokens": "The answer is the most likely tokens that come next, with their probabilities.",
}
_FITS: Final = {
    "stretch": "stretched to",
    "crop": "scaled and cropped to its middle",
    "pad": "scaled and padded with black to",
}
_COLUMN: Final = {"kind": str, "name": str, "missing": bool}
_SHAPES: Final[Mapping[str, object]] = {
    TASK: SHAPES[TASK],
    "labels.json": [str],
    "tags.json": [str],
    "values.json": {"mean": [float], "std": [float]},
    "threshold.json": (float, {str: float}),
    "temperature.json": (float, {str: float}),
    "image.json": {"size": [int, int], "channels": int, "resize": str},
    "table.json": {"columns": [({**_COLUMN, "categories": [str]}, {**_COLUMN, "mean": float})]},
    GOLDEN_ROWS: {"rows": [{str: object}], "answers": [object]},
}
"""The shapes of the documents that are described: a card describes a folder that may come from anyone."""

_MAX_NAMES = 100
_MAX_NAME = 60
_MAX_CHARACTERS = 300

_CODE = """```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
golden = np.load("golden.npz")
inputs = {{each.name: golden[f"input.{{each.name}}"] for each in session.get_inputs()}}
(output,) = session.run(["output"], inputs)
print(output.shape, np.abs(output - golden["output"]).max())
```"""

_CHECK = "python predict.py --check\n"
_ABOUT_CHECK = """`--check` runs the golden rows and reports if this machine reproduces the trained model's predictions.
"""

_CODE_WITHOUT_GOLDEN = """```python
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
for tensor in (*session.get_inputs(), *session.get_outputs()):
    print(tensor.name, tensor.type, tensor.shape)
```"""

_PREDICTOR = """```python
import json
from pathlib import Path
from predict import Predictor

predictor = Predictor("{file}")
rows = json.loads(Path("golden.json").read_text("utf-8"))["rows"]
print(predictor.predict(rows))
```"""

_FILES: Final = {
    EXPORT_MANIFEST: "proofs of the artifacts, timings, versions, checksums",
    GOLDEN_ROWS: "rows of the evaluation split and their predictions",
    GOLDEN_ARRAYS: "the model's inputs and output for those rows, for NumPy",
    GOLDEN_TENSORS: "the same for PyTorch and, with `torch::jit::pickle_load`, C++",
    TASK: "what the task learned from its training data; `trainer predict run=FOLDER` also reads this folder",
    PREDICT_SCRIPT: "the command",
    "texts.py": "turns texts into the model's inputs",
    "images.py": "turns images into the model's inputs",
    "tables.py": "turns rows of a table into the model's inputs",
    "answers.py": "turns outputs into predictions",
    "rows.py": "reads rows from arguments, files and lines",
    "check.py": "runs `--check`",
    "shapes.py": "checks this folder's documents before they are used",
    "generate.py": 'continues texts: `python generate.py "a prompt"`; see `--help`',
    "tokenizer.json": "the tokenizer, for the package tokenizers",
    "image.json": "size, channels, mean and standard deviation of the images",
    "table.json": "the columns, their standardization, the order of the features",
    "values.json": "a value is the output times `std` plus `mean`",
    TRANSITIONS: "scores of a tag at the first word, of a tag (column) after a tag (row), and at the last word; the "
    "tags are the sequence with the largest sum of these scores and of the outputs at the first tokens of words",
    "threshold.json": "a label is predicted if its probability exceeds this number, or its own number",
    "temperature.json": "the output is divided by this number, or by one for each label, before probabilities",
}


def write_readme(stage: Path, manifest: Document, usage: str | None) -> Path:
    """Write `README.md`.

    Args:
        stage: The folder, with the golden rows and the labels in it.
        manifest: The content of manifest.json.
        usage: The description in `predict.py --help`; None if there is no such script.
    """
    sections = [
        _title(stage, manifest),
        _example(stage, usage),
        describe_rows(stage),
        _predict(stage, manifest, usage),
        _code(stage, manifest, usage),
        _tensors(manifest),
        _accuracy(manifest),
        _other_files(stage),
        _origin(manifest),
    ]
    path = stage / README
    path.write_text("\n\n".join(filter(None, sections)) + "\n", "utf-8")
    return path


def _title(stage: Path, manifest: Document) -> str:
    return f"""# {manifest["provenance"].get("run", "A trained model")}

{" ".join(filter(None, [describe_model(manifest), describe_answers(stage, manifest), describe_limit(manifest)]))}

This folder is complete. Each model file in it was
compared with the trained model before it was published; the results are below, and `manifest.json` has checksums."""


def describe_model(manifest: Document) -> str:
    """Return a sentence: the task of the model and what it reads."""
    inputs = " and ".join(_NOUNS.get(role, role) for role in manifest["reads"])
    name = displayable(manifest["task"], keep_lines=False)
    words = _TASKS.get(name) or " ".join(re.findall(r"[A-Z]?[^A-Z]+|[A-Z]+", name)).lower()
    return f"A model for {words}: it reads {inputs}."


def describe_answers(folder: Path, manifest: Document) -> str:
    """Return sentences: what the model answers, in which units, and how it decides; "" if only its task knows this."""
    kind = (_read(folder, TASK) or {}).get(PREDICT_SCRIPT, [None, None])[1]
    if kind == "values":
        units = _read(folder, "values.json") or {"mean": [], "std": []}
        pairs = zip(units["mean"], units["std"], strict=False)
        known = [f"mean {mean:.4g}, standard deviation {std:.4g}" for mean, std in pairs]
        number = "a number" if len(known) == 1 else f"{len(known)} numbers"
        return f"The answer is {number} in the units of the training data ({'; '.join(known)})."
    size = next((output["shape"][-1] for output in manifest.get("outputs", {}).values() if output["shape"]), None)
    text = _ANSWERS.get(kind, "").format(labels=len(_read(folder, "labels.json") or ()), size=size)
    return " ".join(filter(None, [text, *_describe_rule(folder)]))


def describe_limit(manifest: Document) -> str:
    """Return a sentence: the largest number of tokens that the model reads; "" if it reads none."""
    longest = manifest["axes"].get("sequence", (0, None))[1]
    return f"It reads at most {longest} tokens of a row and ignores the rest of a longer one." if longest else ""


def _describe_rule(folder: Path) -> Iterator[str]:
    """Yield how answers are decided, if the task has thresholds or some were set after training."""
    threshold = _read(folder, "threshold.json")
    if isinstance(threshold, float):
        yield f"A label is likely enough if its probability is more than {threshold:g}."
    elif threshold and len(threshold) == 1:
        ((label, limit),) = threshold.items()
        yield f"{_code_span(label)} is the answer if its probability is more than {limit:.4g}, set after training."
    elif threshold:
        yield "Each label has its own least probability, set after training (`threshold.json`)."
    if _read(folder, "temperature.json") is not None:
        yield "Probabilities were calibrated after training (`temperature.json`)."


def _read(folder: Path, name: str) -> Any:
    """Return a document of the folder; None if it does not exist, or if a task of the user's own writes another one.

    Raises:
        CheckpointError: It is damaged.
    """
    file = folder / name
    if not file.is_file():
        return None
    try:
        return read_document(file, _SHAPES[name], "Export it again: trainer export")
    except CheckpointError:
        # Only the documents that `predict.py` reads have known shapes.
        if name in (TASK, GOLDEN_ROWS) or PREDICT_SCRIPT in (_read(folder, TASK) or {}):
            raise
        return None


def script_packages(manifest: Document) -> str:
    """Return the packages that `predict.py` needs, for pip."""
    package = {"image": "pillow", "features": ""}.get(next(iter(manifest["reads"]), ""), "tokenizers")
    return " ".join(["onnxruntime", "numpy", package]).strip()


def graph_code(folder: Path, manifest: Document) -> str:
    """Return Python code that runs the graph on the golden rows, or lists its tensors; "" if there is no graph."""
    artifacts = manifest["artifacts"]
    file = next((artifacts[name]["file"] for name in PREDICT_FORMATS if name in artifacts), None)
    return "" if file is None else (_CODE if _has_golden(folder) else _CODE_WITHOUT_GOLDEN).format(file=file)


def _example(stage: Path, usage: str | None) -> str:
    if usage is None or not _has_golden(stage):
        return ""
    golden = _read(stage, GOLDEN_ROWS)
    row, answer = (_shortened(golden[name][0]) for name in ("rows", "answers"))
    return (
        f"For example (the first of `{GOLDEN_ROWS}`; long values are shortened here):\n\n```text\n{row}\n{answer}\n```"
    )


def describe_rows(folder: Path) -> str:
    """Return the columns of a row of a table or the size of an image, and the labels; "" if there is none of them."""
    sections = []
    if image := _read(folder, "image.json"):
        (height, width), channels = image["size"], image["channels"]
        colors = "gray" if channels == 1 else "RGB"
        fit = f"{_FITS.get(image['resize'], 'changed to')} {height} x {width} pixels (height x width)"
        sections.append(f"## Images\n\nAn image is read as {colors} and, if it has another size, {fit}.")
    if table := _read(folder, "table.json"):
        shown = list_some(
            [f"{_code_span(column['name'])} ({_values_of(column)})" for column in table["columns"]], _MAX_NAMES
        )
        sections.append(f"## Columns\n\nA row has {shown}.")
    for name in ("labels.json", "tags.json"):
        if labels := _read(folder, name):
            shown = list_some([_code_span(label) for label in labels], _MAX_NAMES)
            sections.append(f"## Labels\n\n{shown}: the {len(labels)} outputs in the order of `{name}`.")
    return "\n\n".join(sections)


def _values_of(column: Document) -> str:
    values = f"one of {len(column['categories'])} categories" if "categories" in column else "a number"
    return f"{values}, may be missing" if column["missing"] else values


def _code_span(name: str) -> str:
    """Return a name from the data as code in Markdown, on one line and shortened, whatever characters it has."""
    text = shorten_middle(displayable(name, keep_lines=False), _MAX_NAME)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _predict(stage: Path, manifest: Document, usage: str | None) -> str:
    if usage is None:
        return ""
    check, about_check = (_CHECK, _ABOUT_CHECK) if _has_golden(stage) else ("", "")
    return f"""## Predict

```sh
pip install {script_packages(manifest)}
{check}python predict.py --help
```

```text
{usage.strip()}
```

{about_check}`--model` selects another ONNX file. For a row that cannot be used, the output is `{{"error": ...}}`, and
the exit code is then 6."""


def _code(stage: Path, manifest: Document, usage: str | None) -> str:
    code = graph_code(stage, manifest)
    if not code:
        return ""
    if not _has_golden(stage):
        return f"## In your own code\n\nIn this folder:\n\n{code}"
    file = next(manifest["artifacts"][name]["file"] for name in PREDICT_FORMATS if name in manifest["artifacts"])
    graph = f"## In your own code\n\nIn this folder, only the graph:\n\n{code}"
    return graph + (f"\n\nor from rows to predictions:\n\n{_PREDICTOR.format(file=file)}" if usage else "")


def _has_golden(stage: Path) -> bool:
    return (stage / GOLDEN_ROWS).is_file()


def _tensors(manifest: Document) -> str:
    rows = [
        [f"`{name}`", direction, tensor["dtype"], f"({', '.join(map(str, tensor['shape']))})"]
        for direction, tensors in (("in", manifest["inputs"]), ("out", manifest.get("outputs", {})))
        for name, tensor in tensors.items()
    ]
    axes = [
        f"`{axis}` is at least {low}" if high is None else f"`{axis}` is between {low} and {high}"
        for axis, (low, high) in manifest["axes"].items()
    ]
    table = _table(["tensor", "", "type", "shape"], rows)
    return f"## Inputs and output\n\n{table}\n\n{'; '.join(axes)}."


def _accuracy(manifest: Document) -> str:
    metrics = list(manifest["metrics"])
    rows = [["PyTorch", "", "", *(_number(value, ".4f") for value in manifest["metrics"].values())]]
    for entry in manifest["artifacts"].values():
        scores = [_number(entry["metrics"][name], ".4f") for name in metrics]
        rows.append([f"`{entry['file']}`", str(entry["bytes"]), _number(entry["largest_difference"], ".2g"), *scores])
    split = manifest["provenance"].get("split", "evaluation")
    reused = ", ".join(f"`{manifest['artifacts'][name]['file']}`" for name in manifest["kept"])
    earlier = (
        f"\n\nAn earlier export of the same model wrote {reused} and measured the figures for it." if reused else ""
    )
    return f"""## Accuracy

On the {split} split. The difference is the largest difference of an output from PyTorch's, on this split and at shapes
that were never traced.

{_table(["file", "bytes", "difference", *metrics], rows)}{earlier}"""


def _other_files(stage: Path) -> str:
    rows = [
        [f"`{name}`", content]
        for name, content in _FILES.items()
        if name == EXPORT_MANIFEST or (stage / name).is_file()
    ]
    return "## Other files\n\n" + _table(["file", "content"], rows)


def _origin(manifest: Document) -> str:
    versions = {f"version of {name}": value for name, value in manifest["versions"].items()}
    facts = {**manifest["provenance"], **versions}
    rows = [[name.replace("_", " "), f"`{value}`"] for name, value in facts.items() if not isinstance(value, Mapping)]
    if "pruning" in facts:
        total = facts["pruning"]["total"]
        rows.append(["pruned", f"{total['zeros']} of the {total['size']} weights of its layers are 0"])
    return f"""## Origin

{_table(["", ""], rows)}

The scripts in this folder are part of trainer and under the MIT license. The weights and their training data are under
the terms of their owners."""


def _number(value: float | None, format: str) -> str:
    return "?" if value is None else f"{value:{format}}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shortened(value: object) -> str:
    text = escape_controls(to_json(value, ensure_ascii=False))
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."
