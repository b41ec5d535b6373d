"""`trainer card`: what it says, what it leaves to the person, and what it never shows."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub.repocard import ModelCard

from tests.support.jobs import working_in
from trainer.cli import main
from trainer.commands.card import FILL_IN, make_card
from trainer.commands.run_folders import read_run
from trainer.config.jobs import CardJob
from trainer.export.folder import verify

RUN = Path("runs/one")
MINE = ["task=tabular_classification", "model=mlp", "train.duration=4", "train.eval_every=2", "run.name=one"]


def write_table(path: Path, count: int) -> Path:
    lines = [f"{number % 7},{number % 5},{'high|er' if number % 7 > 3 else 'low'}" for number in range(count)]
    path.write_text("\n".join(["a,b,label", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("card")
    with working_in(made):
        files = [f"data.{split}={write_table(made / f'{split}.csv', 40)}" for split in ("train", "validation", "test")]
        job = [*MINE, "data=files", *files, f"data.cache_dir={made}/cache", "data.strict=false", f"run.dir={RUN}"]
        assert main(["train", *job, "logger.console=none", "logger.tensorboard=false", "export.formats=[onnx]"]) == 0
        yield made


def front_matter(card: str) -> dict[str, object]:
    _, front, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(front))


def test_the_card_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = verify(RUN / "export")
    assert main(["card", str(RUN)]) == 0
    assert capsys.readouterr().out.strip() == f"{RUN}/README.md"
    card = (RUN / "README.md").read_text(encoding="utf-8")
    scores = json.loads((RUN / "eval/test.json").read_text())

    front = front_matter(card)
    assert front.keys() == {"pipeline_tag", "tags", "model-index"}
    assert front["pipeline_tag"] == "tabular-classification"
    # The hub's own reader finds the scores.
    results = {(each.dataset_split, each.metric_type): each for each in ModelCard(card).data.eval_results or []}
    accuracy = results["test", "accuracy"]
    assert accuracy.metric_value == pytest.approx(scores["accuracy"], abs=1e-6)
    assert accuracy.metric_args["confidence_interval_95"] == pytest.approx(scores["intervals"]["accuracy"], abs=1e-6)
    assert "| high\\|er |" in card
    assert "| onnx | export/model.onnx |" in card
    assert "| train.duration | 4 | 4ep |" in card
    assert card.count(FILL_IN) == 5
    assert str(folder) not in card
    assert str(Path.home()) + "/" not in card
    assert verify(RUN / "export") == before


def test_what_the_user_says_is_not_left_to_be_filled_in(folder: Path) -> None:
    record = read_run(str(RUN))
    card = make_card(CardJob(license="mit", language=["en"], dataset="our: table"), record, RUN / "export")
    front = front_matter(card)
    assert (front["license"], front["language"]) == ("mit", ["en"])
    assert card.count(FILL_IN) == 3
    assert "our: table" in card


def test_folders_and_secrets_are_not_shown(folder: Path) -> None:
    record = read_run(str(RUN))
    own = [{"_target_": "mine.M", "api_key": "hunter2", "file": "/home/me/x.txt", "url": "https://a.b/c/d"}]
    config = record.config | {
        "metrics": own,
        "model": record.config["model"] | {"_target_": "mine.Net", "weights": "private/w.pth", "table": "~/my own/y"},
    }
    card = make_card(CardJob(), replace(record, config=config), RUN / "export")
    assert "w.pth" in card
    assert "x.txt" in card
    assert "https://a.b/c/d" in card
    assert [each for each in ("hunter2", "/home/me", "private/", "my own", str(folder)) if each in card] == []


def test_scores_of_other_weights_are_not_those_of_the_artifacts(folder: Path) -> None:
    record = read_run(str(RUN))
    others = {"test": record.evaluations["test"] | {"step": 1}}
    card = make_card(CardJob(), replace(record, evaluations=others), RUN / "export")
    assert "model-index" not in front_matter(card)
    assert f"{FILL_IN} no evaluation of these weights is stored." in card


def test_a_changed_card_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = RUN / "README.md"
    assert main(["card", str(RUN), "force=true"]) == 0
    assert main(["card", str(RUN)]) == 0
    file.write_text(file.read_text().replace(FILL_IN, "Mine:"))
    capsys.readouterr()
    assert main(["card", str(RUN)]) == 2
    assert "Set force=true to replace it" in capsys.readouterr().err
    assert "Mine:" in file.read_text()
    assert main(["card", str(RUN), "output=export/README.md"]) == 2
    assert main(["card", str(RUN), "force=true"]) == 0
    assert "Mine:" not in file.read_text()


def test_a_run_without_artifacts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "run" / name).write_bytes((RUN / name).read_bytes())
    assert main(["card", str(tmp_path / "run")]) == 3
    assert "run: has no artifacts" in capsys.readouterr().err
