"""`predict.py` of every task, without this tool and without torch, answers what `trainer predict` answers."""

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.support.bare_python import bare, run_bare
from tests.support.jobs import TINY, working_in, write_roles
from tests.support.sources import write_idx
from trainer.cli import main

TEXT = TINY[:6]
QUIET = ["train.duration=6", "train.batch_size=8", "logger.console=none", "logger.tensorboard=false", "device=cpu"]

SENTENCES = [
    "apple banana cherry 3",
    "saw",
    "Der Fuchs läuft über 20 Äcker \U0001f98a, 这里 and there.",
    " ".join(["hammer drill"] * 20),
    "\u0000",
    "fox, goat & ibis",
]


class Made(NamedTuple):
    """The overrides of a job and a file of rows to be answered."""

    overrides: list[str]
    asked: Path


def of_roles(task: str, *overrides: str) -> Callable[[Path], Made]:
    """A task over text, on data that play every role."""

    def make(folder: Path) -> Made:
        pairs = [(first, second) for first, second in product(SENTENCES, SENTENCES[:4])]
        masked = [text.replace("banana", "[MASK]").replace("goat", "[MASK]") for text in SENTENCES]
        rows = [
            {"text": masked[number % len(masked)], "text_pair": pair[1], "words": pair[0].split()}
            for number, pair in enumerate(pairs)
        ]
        lines = [json.dumps(row) for row in rows]
        lines[2:2] = ['{"text": ', "{}", json.dumps({"text": 7.0, "text_pair": 1.5, "words": ["fox", 3]})]
        lines.append(json.dumps({"text": "saw", "text_pair": "axe", "words": "New York| is |fox"}))
        asked = folder / "asked.jsonl"
        asked.write_text("\n".join(lines) + "\n", "utf-8")
        return Made([f"task={task}", *write_roles(folder), *TEXT, *overrides], asked)

    return make


def of_images(folder: Path) -> Made:
    write_idx(folder / "idx", 60)
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels[:14, :14, 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels[:, :, :3]).save(folder / "colour.jpg", exif=turned)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"no image")
    asked = folder / "asked.csv"
    asked.write_text("image\ngrey.png\nclear.png\nbroken.png\ncolour.jpg\ndeep.png\n")
    overrides = ["task=image_classification", "data=idx", f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]
    return Made([*overrides, "model=lenet", "task.resize=crop"], asked)


def of_table(task: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        random = np.random.default_rng(0)
        lines = ["size,town,constant,level,label,price"]
        for number in range(80):
            size = "" if number % 9 == 0 else f"{random.normal(170, 9):.3f}"
            town = random.choice(["Bern", "Köln", "", "Ulm", "Graz"])
            lines.append(f"{size},{town},1,{random.integers(3)},{'ab'[number % 2]},{random.normal(1e4, 3e3):.2f}")
        (folder / "train.csv").write_text("\n".join(lines) + "\n", "utf-8")
        if task == "tabular_classification":
            asked = folder / "asked.csv"
            rows = [
                "size,town,constant,level",
                "1e3,Nowhere,2,",
                ",,,1",
                "tall,Bern,1,1",
                "170,7,1,2",
                "170,7",
                "nan,, ,1",
            ]
        else:
            asked = folder / "asked.jsonl"
            cells = [[170, "Bern", 1, 2], [None, "", " ", None], ["1_7", "Bern", 1, 2], [1e300, "Bern", 1, 2]]
            cells += [[True, 3.0, 1, "2"], [170, ["Bern"], 1, 2], [float("nan"), "Ulm", 1, 1], ["inf", "Ulm", 1, 1]]
            found = [dict(zip(("size", "town", "constant", "level"), each, strict=True)) for each in cells]
            found += [{"size": 170, "Town": "Bern", "constant": 1, "level": 2}, {}]
            rows = [*map(json.dumps, found), "[1]"]
        asked.write_text("\n".join(rows) + "\n", "utf-8")
        columns = ["data.columns.features=[size,town,constant,level]", "data.columns.value=price"]
        files = ["data=files", f"data.train={folder}/train.csv", f"data.cache_dir={folder}/cache", *columns]
        return Made([f"task={task}", *files, "task.max_categories=3", "model=mlp", "model.hidden=[8]"], asked)

    return make


JOBS: dict[str, Callable[[Path], Made]] = {
    "text_classification": of_roles("text_classification"),
    "multilabel_classification": of_roles("multilabel_classification", "task.threshold=0.45"),
    "pair_classification": of_roles("pair_classification"),
    "regression": of_roles("regression"),
    "token_classification": of_roles("token_classification", "data.list_separator='|'"),
    "masked_lm": of_roles("masked_lm"),
    "causal_lm": of_roles("causal_lm"),
    "sentence_embedding": of_roles("sentence_embedding"),
    "image_classification": of_images,
    "tabular_classification": of_table("tabular_classification"),
    "tabular_regression": of_table("tabular_regression"),
}


def assert_alike(got: Any, want: Any) -> None:
    """Equal but for rounding: of six decimals, and of float32 in another order."""
    if isinstance(want, dict):
        assert list(got) == list(want)
        for name in want:
            if name != "error":
                assert_alike(got[name], want[name])
    elif isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_alike(one, other)
    elif isinstance(want, float):
        assert got == pytest.approx(want, abs=3e-6, rel=3e-6)
    else:
        assert got == want


def test_every_task_has_its_job() -> None:
    tasks = {path.stem for path in (Path(__file__).parents[2] / "conf/task").glob("*.yaml")}
    assert tasks == JOBS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("task", JOBS)
def test_answers_of_a_folder_alone(task: str, tmp_path: Path) -> None:
    overrides, asked = JOBS[task](tmp_path)
    run, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    with working_in(tmp_path):
        assert main(["train", *overrides, *QUIET, "export.formats=[onnx]", f"run.dir={run}"]) == 0
        code = main(["predict", f"run={run}", f"input={asked}", f"output={answers}", "top=2", "device=cpu"])
    packages = bare(tmp_path)
    checked = run_bare(packages, str(run / "export/predict.py"), "--check")
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    result = run_bare(packages, str(run / "export/predict.py"), "--top", "2", str(asked))
    assert "rows could not be used; the others are answered." in result.stderr
    assert (result.returncode, code) == (6, 6), "one of the rows is broken"
    want = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    got = [json.loads(line) for line in result.stdout.splitlines()]
    number = re.compile(r".*?(?:row|line) (\d+)")
    spots = [[number.match(each["error"])[1] if "error" in each else None for each in part] for part in (got, want)]  # type: ignore[index]
    assert spots[0] == spots[1]
    assert_alike(got, want)
