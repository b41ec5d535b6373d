"""The README.md of an export folder, for whoever receives it and has never seen this tool."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.export.golden import ARRAYS, ROWS, TENSORS
from trainer.export.script import RUN

README = "README.md"

_NOUNS = {
    "text": "a text",
    "text_pair": "a second text",
    "words": "words",
    "image": "an image",
    "features": "the cells of a table's row",
}
_MOST_LABELS = 100
_MOST_CHARACTERS = 300

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
_WHAT_CHECK_DOES = """`--check` runs the golden rows and says whether this machine gives what the trained model gave.
"""

_BARE = """```python
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


def write_readme(stage: Path, manifest: Mapping[str, Any], usage: str | None) -> Path:
    """Writes `README.md`.

    Args:
        stage: The folder, with the golden rows and the labels in it.
        manifest: What manifest.json will hold.
        usage: What `predict.py --help` says; None where there is no such script.
    """
    sections = [
        _title(manifest),
        _example(stage, usage),
        _labels(stage),
        _predict(stage, manifest, usage),
        _code(stage, manifest, usage),
    ]
    sections += [_tensors(manifest), _artifacts(manifest), _files(stage), _origin(manifest)]
    path = stage / README
    path.write_text("\n\n".join(filter(None, sections)) + "\n", "utf-8")
    return path


def _title(manifest: Mapping[str, Any]) -> str:
    read = " and ".join(_NOUNS.get(role, role) for role in manifest["reads"])
    return f"""# {manifest["provenance"].get("run", "A trained model")}

A model that was trained as `{manifest["task"]}`: it reads {read}. This folder is complete. Each model file in it was
run beside the trained model before it was published; what was found is below, and `manifest.json` has checksums."""


def _example(stage: Path, usage: str | None) -> str:
    if usage is None or not _has_golden(stage):
        return ""
    golden = json.loads((stage / ROWS).read_text("utf-8"))
    row, answer = (_shown(golden[name][0]) for name in ("rows", "answers"))
    return f"For example (the first of `{ROWS}`; long ones are cut here):\n\n```text\n{row}\n{answer}\n```"


def _labels(stage: Path) -> str:
    for name in ("labels.json", "tags.json"):
        if (stage / name).is_file():
            labels = json.loads((stage / name).read_text("utf-8"))
            shown = ", ".join(f"`{label}`" for label in labels[:_MOST_LABELS])
            more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
            return f"## Labels\n\n{shown}{more}: the {len(labels)} outputs in the order of `{name}`."
    return ""


def _predict(stage: Path, manifest: Mapping[str, Any], usage: str | None) -> str:
    if usage is None:
        return ""
    packages = {"image": "pillow", "features": ""}.get(manifest["reads"][0], "tokenizers")
    check, what_it_does = (_CHECK, _WHAT_CHECK_DOES) if _has_golden(stage) else ("", "")
    return f"""## Predict

```sh
pip install {" ".join(["onnxruntime", "numpy", packages]).strip()}
{check}python predict.py --help
```

```text
{usage.strip()}
```

{what_it_does}`--model` takes another of the ONNX files. A row that cannot be used gives `{{"error": ...}}` in its
place, and the exit code 6 at the end."""


def _code(stage: Path, manifest: Mapping[str, Any], usage: str | None) -> str:
    file = next((manifest["artifacts"][name]["file"] for name in RUN if name in manifest["artifacts"]), None)
    if file is None:
        return ""
    if not _has_golden(stage):
        return f"## In your own code\n\nIn this folder:\n\n{_BARE.format(file=file)}"
    code = f"## In your own code\n\nIn this folder, the graph alone:\n\n{_CODE.format(file=file)}"
    return code + (f"\n\nor from rows to answers:\n\n{_PREDICTOR.format(file=file)}" if usage else "")


def _has_golden(stage: Path) -> bool:
    return (stage / ROWS).is_file()


def _tensors(manifest: Mapping[str, Any]) -> str:
    rows = [
        [f"`{name}`", direction, each["dtype"], f"({', '.join(map(str, each['shape']))})"]
        for direction, tensors in (("in", manifest["inputs"]), ("out", manifest["outputs"]))
        for name, each in tensors.items()
    ]
    axes = [
        f"`{axis}` is {low} or more" if high is None else f"`{axis}` is {low} to {high}"
        for axis, (low, high) in manifest["axes"].items()
    ]
    table = _table(["tensor", "", "type", "shape"], rows)
    return f"## Inputs and output\n\n{table}\n\n{'; '.join(axes)}."


def _artifacts(manifest: Mapping[str, Any]) -> str:
    metrics = list(manifest["metrics"])
    rows = [["PyTorch", "", "", *(_number(value, ".4f") for value in manifest["metrics"].values())]]
    for each in manifest["artifacts"].values():
        scores = [_number(each["metrics"][name], ".4f") for name in metrics]
        rows.append([f"`{each['file']}`", str(each["bytes"]), _number(each["largest_difference"], ".2g"), *scores])
    split = manifest["provenance"].get("split", "evaluation")
    kept = ", ".join(f"`{manifest['artifacts'][name]['file']}`" for name in manifest["kept"])
    earlier = f"\n\nAn earlier export of the same model wrote {kept}, and found these figures of it." if kept else ""
    return f"""## Accuracy

On the {split} split. The difference is the largest of any output from PyTorch's, there and at shapes that no exporter
saw.

{_table(["file", "bytes", "difference", *metrics], rows)}{earlier}"""


def _files(stage: Path) -> str:
    said = {
        "manifest.json": "how each artifact was proved, timings, versions, checksums",
        ROWS: "rows of the evaluation split and the answers to them",
        ARRAYS: "the model's inputs for those rows and its output, for NumPy",
        TENSORS: "the same for PyTorch and, with `torch::jit::pickle_load`, C++",
        "task.json": "what the task learnt: `trainer predict run=FOLDER` answers by this folder, too",
        "task.py": "how rows become inputs and the output answers",
        "predict.py": "the command",
        "rows.py": "how arguments, files and lines become rows",
        "check.py": "what `--check` compares",
        "generate.py": 'goes on with texts: `python generate.py "a prompt"`; `--help` tells more',
        "tokenizer.json": "the tokenizer, for the package tokenizers",
        "image.json": "size, channels, mean and standard deviation of the images",
        "table.json": "the columns, how they are standardized, the features in their order",
        "values.json": "a value is the output times `std` plus `mean`",
        "threshold.json": "a label is given where its probability is above it",
    }
    there = [(name, what) for name, what in said.items() if name == "manifest.json" or (stage / name).is_file()]
    return "## Other files\n\n" + _table(["file", "what it holds"], [[f"`{name}`", what] for name, what in there])


def _origin(manifest: Mapping[str, Any]) -> str:
    known = {**manifest["provenance"], **{f"version of {name}": value for name, value in manifest["versions"].items()}}
    rows = [[name.replace("_", " "), f"`{value}`"] for name, value in known.items() if not isinstance(value, Mapping)]
    if "pruning" in known:
        total = known["pruning"]["total"]
        rows.append(["pruned", f"{total['zeros']} of the {total['size']} weights of its layers are 0"])
    return f"""## Where it comes from

{_table(["", ""], rows)}

The scripts in this folder are part of trainer and under the MIT license. The weights and what they were trained on are
under whatever terms their owner gives you."""


def _number(value: float | None, format: str) -> str:
    return "?" if value is None else f"{value:{format}}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
