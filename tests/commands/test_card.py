"""`trainer card` and `trainer push`: what they say, what they leave to the person, and what they never show."""

import json
import re
import shutil
import threading
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.repocard import ModelCard

from tests.support.documents import edit_manifest
from tests.support.jobs import working_in
from trainer.cli import main
from trainer.commands.card import FILL_IN, make_card
from trainer.commands.run_folders import read_run
from trainer.config.jobs import CardJob
from trainer.export.folder import verify
from trainer.export.readme import describe_answers
from trainer.hub import is_reachable

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
    assert "A row has `a` (a number), `b` (a number).\n" in card
    assert "`high|er`, `low`: the 2 outputs in the order of `labels.json`." in card
    assert "python predict.py rows.csv\n" in card
    assert "| onnx | export/model.onnx |" in card
    assert "| train.duration | 4 | 4ep |" in card
    assert "a table. The answer is the most likely one of 2 labels, with its probability.\n" in card
    assert "Classes with fewer than 50 training targets: high\\|er (16), low (24).\n" in card
    assert "`mlp` was trained from random weights on 40 rows with the loss `cross_entropy` and the optimizer" in card
    assert ": 4 steps of 32 rows, 2 epochs. The artifacts have the weights of step" in card
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


@pytest.mark.parametrize(("path", "named"), [("owner/name", ["owner/name"]), ("/my/own/name", [])])
def test_model_and_data_of_the_hub_are_linked_and_those_of_a_folder_are_not(
    folder: Path, path: str, named: list[str]
) -> None:
    record = read_run(str(RUN))
    model = {"_target_": "trainer.model.pretrained.Pretrained", "path": path, "pretrained": True}
    data = {"_target_": "trainer.data.hub.Hub", "path": path}
    front = front_matter(
        make_card(CardJob(), replace(record, config=record.config | {"model": model, "data": data}), RUN / "export")
    )
    assert [front.get("base_model")] == (named or [None])
    assert front.get("datasets", []) == named
    model["pretrained"] = False
    card = make_card(CardJob(), replace(record, config=record.config | {"model": model}), RUN / "export")
    assert "base_model" not in front_matter(card)


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


def test_languages_of_texts_are_named_or_asked_for(folder: Path, tmp_path: Path) -> None:
    record = read_run(str(RUN))
    artifacts = Path(shutil.copytree(RUN / "export", tmp_path / "export"))
    edit_manifest(artifacts, lambda document: document.update(reads=["text"], axes={"sequence": [1, 64]}))
    limits = make_card(CardJob(), record, artifacts).partition("## Limits")[2].partition("## Data")[0]
    assert "It reads at most 64 tokens of a row and ignores the rest of a longer one." in limits
    assert f"{FILL_IN} the languages of the texts (`language=[en]`)." in limits
    assert "Its texts are in: en, zh." in make_card(CardJob(language=["en", "zh"]), record, artifacts)


def test_only_the_best_weights_are_called_the_best(folder: Path, tmp_path: Path) -> None:
    record = read_run(str(RUN))
    artifacts = Path(shutil.copytree(RUN / "export", tmp_path / "export"))
    assert record.best is not None
    step, score = record.best["step"], {"name": "accuracy", "value": 0.75, "weights": "raw"}

    def training(**origin: object) -> str:
        edit_manifest(artifacts, lambda document: document["provenance"].update(origin))
        return make_card(CardJob(), record, artifacts).partition("## Training")[2]

    best = f"the weights of step {step}, the best by accuracy on the validation split (0.75).\n"
    assert best in training(step=step, weights="raw", score=score)
    assert "step 1, not the best of the run by accuracy on the validation split (0.75)." in training(step=1)
    # Other weights than the best ones were exported, so the card must not call them the best.
    assert f"the averaged (EMA) weights of step {step}.\n" in training(step=step, weights="ema")


ANSWERS: tuple[tuple[str, dict[str, object], str], ...] = (
    (
        "classes",
        {"labels": ["no", "yes"], "threshold": {"yes": 0.25}, "temperature": 1.5},
        "The answer is the most likely one of 2 labels, with its probability. `yes` is the answer if its probability "
        "is more than 0.25, set after training. Probabilities were calibrated after training (`temperature.json`).",
    ),
    (
        "labels",
        {"labels": ["a", "b"], "threshold": 0.5},
        "The answer is each of 2 labels that is likely enough, possibly none, and the probabilities. A label is likely "
        "enough if its probability is more than 0.5.",
    ),
    (
        "labels",
        {"labels": ["a", "b"], "threshold": {"a": 0.2, "b": 0.7}},
        "The answer is each of 2 labels that is likely enough, possibly none, and the probabilities. Each label has "
        "its own least probability, set after training (`threshold.json`).",
    ),
    (
        "values",
        {"values": {"mean": [3.0], "std": [0.5]}},
        "The answer is a number in the units of the training data (mean 3, standard deviation 0.5).",
    ),
    ("embeddings", {}, "The answer is a vector of 8 numbers. Similar inputs have vectors with a large cosine."),
)


@pytest.mark.parametrize(("kind", "documents", "text"), ANSWERS)
def test_answers_are_described_in_words(kind: str, documents: dict[str, object], text: str, tmp_path: Path) -> None:
    for name, document in {"task": {"predict.py": ["texts", kind]}, **documents}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    assert describe_answers(tmp_path, {"outputs": {"output": {"shape": ["batch", 8]}}}) == text


def test_scores_of_other_weights_are_not_those_of_the_artifacts(folder: Path) -> None:
    record = read_run(str(RUN))
    others = {"test": record.evaluations["test"] | {"step": 1}}
    card = make_card(CardJob(), replace(record, evaluations=others), RUN / "export")
    assert "model-index" not in front_matter(card)
    assert f"{FILL_IN} no evaluation of these weights is stored." in card


def test_validation_sets_are_named_in_words(folder: Path, tmp_path: Path) -> None:
    record, copy = read_run(str(RUN)), tmp_path / "run"
    shutil.copytree(RUN, copy)
    (copy / "eval/validation.predictions.parquet").rename(copy / "eval/validation.clean.predictions.parquet")
    assert record.best is not None
    named = {"split": "validation/clean"}
    sets = replace(
        record,
        folder=copy,
        evaluations={"validation.clean": record.evaluations["validation"] | named},
        events=[event | named if event.get("split") == "validation" else event for event in record.events],
        best=record.best | named,
    )
    card = make_card(CardJob(), sets, RUN / "export")
    assert "validation.clean" not in card
    assert {each.dataset_split for each in ModelCard(card).data.eval_results or []} == {"validation/clean"}
    assert "\nOn the validation set clean, " in card
    assert "\nThe lowest F1 on the validation set clean:\n" in card
    assert re.search(r", (not )?the best( of the run)? by accuracy on the validation set clean \(", card)


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


class Hub(BaseHTTPRequestHandler):
    """A small stand-in for the hub: it keeps what is sent. `refuse` is the status of its refusals."""

    files: ClassVar[dict[str, bytes]] = {}
    repositories: ClassVar[list[dict[str, Any]]] = []
    refuse: ClassVar[int | None] = None

    def do_HEAD(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.files[self.path] = b"".join(self.read_body())
        self.answer({})

    def read_body(self) -> Iterator[bytes]:
        if "Content-Length" in self.headers:
            yield self.rfile.read(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_POST(self) -> None:
        body = b"".join(self.read_body())
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        assert self.headers["Authorization"] == "Bearer hf_secret"
        if self.refuse is not None:
            self.answer({"error": "no right to write"}, self.refuse)
        elif self.path == "/api/repos/create":
            self.repositories.append(json.loads(body))
            self.answer({"url": f"{address}/owner/name"})
        elif self.path.endswith("/preupload/main"):
            paths = [each["path"] for each in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith(".onnx") else "regular" for path in paths]
            files = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(paths, modes, strict=True)]
            self.answer({"files": files})
        elif self.path.endswith("/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{address}/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.files.pop(f"/{value['oid']}")
            self.answer({"commitUrl": f"{address}/owner/name/commit/1", "commitOid": "1"})
        else:
            assert self.path == "/api/validate-yaml", self.path
            self.answer({})

    def answer(self, document: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "repositories", [])
    monkeypatch.setattr(Hub, "refuse", None)
    is_reachable.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has only the older protocol
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield Hub
        server.shutdown()
    is_reachable.cache_clear()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub calls httpx in an old way
def test_push_sends_the_card_and_the_proved_files(
    folder: Path, hub: type[Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    (run / "README.md").unlink(missing_ok=True)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    loss = "trainer.loss.cross_entropy.CrossEntropy"
    assert loss in config
    (run / "config.yaml").write_text(config.replace(loss, "my_loss.CrossEntropy"), encoding="utf-8")
    assert main(["push", str(run), "to=owner/name"]) == 3
    assert capsys.readouterr().err.endswith(f"Write it: trainer card run={run}.\n"), "no code of the run needs trust"
    assert main(["card", f"run={run}"]) == 0
    (run / "export/notes.txt").write_text("private")

    assert main(["push", str(run), "to=owner/name", "dry_run=true"]) == 0
    assert "5 lines are still to be filled in" in (shown := capsys.readouterr()).err
    assert "export/model.onnx" in shown.out
    assert (hub.files, hub.repositories) == ({}, [])

    assert main(["push", str(run), "to=owner/name"]) == 0
    assert capsys.readouterr().out.endswith("/owner/name/commit/1\n")
    # Older versions of huggingface_hub say `private` instead.
    assert [each.get("private") or each["visibility"] == "private" for each in hub.repositories] == [True]
    sent = {f"export/{name}" for name in verify(run / "export")} | {"README.md", "export/manifest.json"}
    assert hub.files == {name: (run / name).read_bytes() for name in sent}
    # What arrives is a complete folder of artifacts.
    for name, content in hub.files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    assert not any(verify(tmp_path / "copy/export").values())

    hub.files.clear()
    (run / "export/labels.json").write_text("[]")
    assert main(["push", str(run), "to=owner/name"]) == 3
    assert "labels.json: has 2 bytes instead of" in capsys.readouterr().err
    assert hub.files == {}


def test_push_says_why_it_cannot_send(
    folder: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(RUN), "force=true"]) == 0
    command = ["push", str(RUN), "to=owner/name"]

    def error_of(*command: str) -> str:
        capsys.readouterr()
        assert main(list(command)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "hf_secret" not in error
        return error

    message = "to: must be owner/name, got 'name'. Name a repository: to=owner/name."
    assert error_of("push", str(RUN), "to=name") == message
    monkeypatch.setattr(hub, "refuse", 403)
    assert "the hub refused with status 403" in error_of(*command)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    is_reachable.cache_clear()
    assert error_of(*command).startswith("push: the hub cannot be reached")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "none"))
    assert error_of(*command) == "push: there is no token for the hub. Set HF_TOKEN, or log in: hf auth login"
    assert hub.files == {}
