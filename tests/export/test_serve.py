"""The HTTP server over an exported folder: its answers, its refusals, its end."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.export.conftest import LoopClock, Published
from tests.export.test_bundle import TEXTS, expected, list_again
from tests.support.documents import edit_manifest
from tests.support.processes import PATIENCE
from trainer.cli import main
from trainer.errors import CheckpointError, ConfigError, ProofError
from trainer.export.bundle.predict import Row
from trainer.serve.app import Service
from trainer.serve.batcher import LARGEST_BATCH, Batcher, LoopBatcher, QueueFullError, Rows
from trainer.serve.body import Decode, RequestError, decode_strictly, parse_body
from trainer.serve.columns import Columns
from trainer.serve.model import TOKENS_PER_CALL, ServedModel, count_characters, split_by_length
from trainer.serve.openapi import openapi
from trainer.serve.prediction import Limits
from trainer.serve.reference import render

LIMITS = Limits(max_rows=8, max_bytes=4000, timeout=600.0)


@pytest.fixture(scope="module")
def client(published: Published) -> Iterator[TestClient]:
    model = ServedModel(published.folder)
    batcher = Batcher(model.answer, 2, 100)
    with TestClient(Service(model, batcher, LIMITS, "1.2").app()) as client:
        yield client
    batcher.close()


def assert_expected(answers: list[Row], top: int = 1) -> None:
    for ours, theirs in zip(answers, expected(top), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=2e-6)


def test_answers_are_those_of_the_model(client: TestClient) -> None:
    response = client.post("/predict", json={"rows": [{"text": text, "more": 1} for text in TEXTS], "top": 3})
    assert response.status_code == 200
    assert_expected(response.json()["answers"], top=3)
    # One by one, and as texts.
    assert_expected([client.post("/predict", json={"rows": [text]}).json()["answers"][0] for text in TEXTS])


def test_broken_rows_do_not_stop_the_others(client: TestClient) -> None:
    rows = [TEXTS[0], {"txt": "w1"}, "", 3, TEXTS[1], {"text": ["w1"]}, TEXTS[2]]
    response = client.post("/predict", json={"rows": rows})
    answers = response.json()["answers"]
    assert response.status_code == 200
    assert_expected([answers[place] for place in (0, 4, 6)])
    assert [answers[place]["error"] for place in (1, 2, 3, 5)] == [
        "has no column 'text'. It has 'txt'",
        "is empty",
        "expected an object in JSON, got a number",
        "expected a text, got list",
    ]


JSON = "application/json"
REFUSED: tuple[tuple[bytes, str, int, str], ...] = (
    (b'{"rows": ["w1"]}', "text/plain", 415, "the body must be JSON"),
    (b"{", JSON, 400, "is not JSON"),
    (b"\xff", JSON, 400, "is not UTF-8"),
    (b"[" * 5000, JSON, 413, "larger than 4000 bytes"),
    (b"[]", JSON, 400, "must be an object"),
    (b'{"rows": "w1"}', JSON, 400, "rows: must be a list"),
    (b"{}", JSON, 400, "rows: is missing"),
    (b'{"rows": []}', JSON, 400, "rows: is empty"),
    (b'{"rows": ["w1"], "k": 1}', JSON, 400, "unknown field 'k'"),
    (b'{"rows": ["w1"], "top": 0}', JSON, 400, "top: must be at least 1, got 0"),
    (b'{"rows": ["w1"], "top": 1.5}', JSON, 400, "top: must be an integer"),
    (b'{"rows": [NaN]}', JSON, 400, "contains the number nan"),
    (b'{"rows": ["\\ud800"]}', JSON, 400, "half of a character"),
    (b'{"rows": [1,1,1,1,1,1,1,1,1]}', JSON, 413, "at most 8 per request (max_rows), got 9"),
    (b'{"rows": [" "]}', JSON, 422, "rows[0]: is empty"),
)


@pytest.mark.parametrize(("body", "kind", "status", "problem"), REFUSED)
def test_requests_that_cannot_be_answered_say_why(
    client: TestClient, body: bytes, kind: str, status: int, problem: str
) -> None:
    response = client.post("/predict", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    assert problem in response.json()["error"]


def test_size_is_limited_without_a_declared_length(client: TestClient) -> None:
    pieces = (b"x" * 100 for _ in range(100))
    response = client.post("/predict", content=pieces, headers={"Content-Type": JSON})
    assert response.status_code == 413


def test_requests_are_counted(published: Published) -> None:
    model = ServedModel(published.folder)
    batcher = Batcher(model.answer, 32, 100)
    with TestClient(Service(model, batcher, LIMITS, "1.2").app()) as client:
        client.post("/predict", json={"rows": ["w1", "w2", ""]})
        client.post("/predict", json={"rows": []})
        text = client.get("/metrics").text
    batcher.close()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['trainer_requests_total{status="200"}'] == values['trainer_requests_total{status="400"}'] == "1"
    assert (values["trainer_rows_total"], values["trainer_broken_rows_total"]) == ("3", "1")
    assert values['trainer_request_seconds_bucket{le="+Inf"}'] == values["trainer_request_seconds_count"] == "2"
    assert (values["trainer_batches_total"], values["trainer_waiting_rows"]) == ("1", "0")


def test_answers_of_the_event_loop_are_the_same(published: Published) -> None:
    model, gate = ServedModel(published.folder), Gate()
    batcher = Batcher(gate.answer, 2, 100)
    quick = LoopBatcher(model.answer, 2)
    limits = Limits(max_rows=8, max_bytes=4000, timeout=600.0, max_characters=200)
    app = Service(model, batcher, limits, "1", quick=quick, quick_rows=4).app()
    with TestClient(app, raise_server_exceptions=False) as client:
        rows = [*TEXTS, "w1 " * 100]
        answers = client.post("/predict", json={"rows": rows}).json()["answers"]
        assert_expected(answers[:3])
        assert answers[3] == {"error": "has 300 characters, more than 200 (max_characters). Send a part of it"}
        assert "trainer_batches_total 2" in client.get("/metrics").text
        # A request of more rows or more answers goes to the threads, whose model is another one here.
        gate.open.set()
        for larger in ({"rows": ["broken"] * 5}, {"rows": ["broken"], "top": 2}):
            refused = client.post("/predict", json=larger)
            assert refused.json() == {"error": "the server has a fault (RuntimeError), which its log describes."}
            assert refused.status_code == 500
    batcher.close()


@pytest.mark.parametrize("quick_rows", [0, 4])
def test_files_that_do_not_fit_together_are_reported_to_the_client(published: Published, quick_rows: int) -> None:
    def refuse(rows: list[Row], top: int) -> list[Row]:
        raise CheckpointError("the files do not fit together")

    batcher = Batcher(refuse, 2, 100)
    quick = LoopBatcher(refuse, 2)
    app = Service(ServedModel(published.folder), batcher, LIMITS, "1", quick=quick, quick_rows=quick_rows).app()
    with TestClient(app) as client:
        response = client.post("/predict", json={"rows": ["w1"]})
    batcher.close()
    assert (response.status_code, response.json()) == (500, {"error": "the files do not fit together"})


LOOSE = st.recursive(
    st.one_of(st.integers(), st.sampled_from((2**63, 2**64, -(2**64), 10**30)), st.floats(), st.text(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=6,
)
BODIES = st.one_of(
    st.fixed_dictionaries({"rows": st.lists(LOOSE, max_size=4)}, optional={"top": LOOSE, "k": LOOSE}),
    st.fixed_dictionaries({"columns": st.dictionaries(st.text(max_size=2), st.lists(LOOSE, max_size=4) | LOOSE)}),
    LOOSE,
).map(json.dumps)


@settings(max_examples=40)
@given(st.one_of(BODIES, st.tuples(BODIES, st.integers(0, 20)).map(lambda pair: pair[0][: -pair[1] or None])))
@example('{"rows": [{"a": 1, "a": 2}]}')
@example('{"columns": {"a": [1], "a": [2]}}')
@example('{"columns": {"a": [1, 18446744073709551616], "b": [1e999, null]}}')
@example('{"rows": [":", {"a" : "\\":"}]}')
@example('{"rows": [{"a": 1e999}, {"a": "\\ud800"}]}')
@example('{"rows": [' + "[" * 99 + "]" * 99 + "]}")
@example('{"rows": [{"a": [' + "{}," * 30 + '{"b": 18446744073709551616}]}]}')
def test_a_strict_parser_gives_and_refuses_the_same(text: str) -> None:
    class RefusedError(Exception):
        """An error that a strict parser raises."""

    def refuse(constant: str) -> None:
        raise RefusedError(constant)

    def decode(body: bytes) -> Any:
        document = json.loads(body, parse_constant=refuse)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        return document

    def outcome(own: Decode | None) -> object:
        try:
            items, top = parse_body(text.encode("utf-8", "surrogatepass"), 3, own)
            return json.dumps((items.rows() if isinstance(items, Columns) else items, top))
        except RequestError as error:
            return error.status, str(error)

    assert outcome(decode) == outcome(decode_strictly) == outcome(None)


def test_page_and_descriptions(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    for name in ("form.js", "form.css"):
        assert name in page.text
        assert client.get(f"/{name}").status_code == 200
    model = client.get("/model").json()
    assert (model["rows"], model["answers"], model["columns"]) == (
        "texts",
        "classes",
        [{"name": "text", "kind": "text"}],
    )
    described = client.get("/openapi.json").json()
    assert described["info"]["version"] == "1.2"
    example = described["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    answers = client.post("/predict", json=example | {"top": 3}).json()["answers"]
    assert answers[0]["label"] == model["example"]["answers"][0]["label"]
    assert client.get("/health").json() == {"status": "ok", "model": "model.onnx"}
    unknown, wrong = client.get("/nothing"), client.get("/predict")
    assert (unknown.status_code, wrong.status_code, wrong.headers["allow"]) == (404, 405, "POST")
    assert unknown.json()["error"].startswith("no such path, got /nothing. Known: /predict, /, ")
    assert wrong.json()["error"] == "/predict: does not answer GET. Use POST."


def test_page_of_the_interface_needs_no_script(client: TestClient) -> None:
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    for text in (
        "POST /predict",
        "rows[].text",
        "1 to 8 items",
        "curl http://testserver/predict",
        "default 1",
        "<code>504",
        "did not arrive within <code>timeout</code>",
    ):
        assert text in response.text
    assert "<script" not in response.text
    # What comes from a model is shown as text.
    names = {"name": "<b>", "kind": "category", "categories": ["<i>"]}
    model: dict[str, Any] = {"name": "<u>", "rows": "tables", "answers": "values", "columns": [names], "example": None}
    page = render(openapi(model, "1", 8), "http://here/")
    assert "rows[].&lt;b&gt;" in page
    assert "such as &lt;i&gt;" in page
    assert not any(tag in page for tag in ("<b>", "<i>", "<u>"))


@pytest.mark.parametrize(
    "answers", ["classes", "labels", "values", "embeddings", "tags", "spans", "masked", "next_tokens"]
)
def test_every_kind_of_answer_has_a_page(answers: str) -> None:
    columns = [{"name": "image", "kind": "image"}, {"name": "words", "kind": "words"}, {"name": "x", "kind": "number"}]
    model: dict[str, Any] = {"name": "m", "rows": "texts", "answers": answers, "columns": columns, "example": None}
    page = render(openapi(model, "1", 8), "http://here/")
    assert "answers[]." in page
    assert ("answers[].entities[].probability" in page) == (answers in ("tags", "spans"))


@pytest.fixture
def copy(published: Published, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published.folder, tmp_path / "copy"))


def test_no_code_of_the_folder_is_run(copy: Path) -> None:
    for script in copy.glob("*.py"):
        script.write_text(f"open({str(copy / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    model = ServedModel(copy)
    assert model.check()
    assert model.answer([{"text": "w1"}], 1)[0]["label"]
    assert not (copy / "ran").exists()


def test_folder_that_does_not_give_the_golden_answers_is_refused(copy: Path) -> None:
    with np.load(copy / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["output"][-1, -1] += 0.01
    np.savez(copy / "golden.npz", **arrays)
    list_again(copy, "golden.npz")
    with pytest.raises(ProofError, match="does not give the golden answers"):
        ServedModel(copy).check()
    assert main(["serve", f"run={copy}", "port=0"]) == 4


def test_unusable_folders_are_reported(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is not a folder of artifacts"):
        ServedModel(tmp_path / "empty")
    with pytest.raises(ConfigError, match="artifact: the folder has onnx"):
        ServedModel(copy, "onnx_int8")
    (copy / "golden.json").unlink()
    assert not ServedModel(copy).check()
    edit_manifest(copy, lambda document: document["artifacts"].pop("onnx"))
    with pytest.raises(CheckpointError, match="lists no model"):
        ServedModel(copy)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", f"run={copy}", f"port={port}"]) == 2
    assert f"port: cannot be used (Address already in use), got {port}. Set port=0" in capsys.readouterr().err
    assert main(["serve", f"folder={copy}", f"run={copy}"]) == 2
    assert "folder: run names what is served, too" in capsys.readouterr().err
    assert main(["serve", f"folder={tmp_path / 'empty'}"]) == 3
    assert "folder: contains no manifest.json" in capsys.readouterr().err
    assert main(["serve", f"folder={copy}", "port=0", "host=no.such.host.invalid"]) == 2
    assert "host: is no address of this machine" in capsys.readouterr().err
    (copy / "model.onnx").write_bytes(b"damaged")
    assert main(["serve", f"run={tmp_path / 'empty'}"]) == 3


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6))
def test_batches_are_divided_by_length_at_the_least_cost(lengths: list[int]) -> None:
    mask = np.array([[int(place < length) for place in range(max(lengths))] for length in lengths])
    ids = mask * np.arange(1, len(lengths) + 1)[:, None]
    parts = split_by_length({"input_ids": ids, "attention_mask": mask})
    for places, inputs in parts:
        assert inputs["attention_mask"].shape == (len(places), max(lengths[place] for place in places))
        assert inputs["attention_mask"].sum(axis=1).tolist() == [lengths[place] for place in places]
        assert (inputs["input_ids"].max(axis=1) - 1).tolist() == places
    assert sorted(place for places, _ in parts for place in places) == list(range(len(lengths)))

    def cost(groups: Sequence[Sequence[int]]) -> int:
        return sum(max(group) * len(group) + TOKENS_PER_CALL for group in groups if group)

    ordered = sorted(lengths)
    cuts = [cut for n in range(len(ordered)) for cut in combinations(range(1, len(ordered)), n)]
    divisions = [[ordered[a:b] for a, b in pairwise((0, *cut, len(ordered)))] for cut in cuts]
    assert cost([[lengths[place] for place in places] for places, _ in parts]) == min(map(cost, divisions))


def test_threads_may_answer_at_once(published: Published) -> None:
    model = ServedModel(published.folder)
    with ThreadPoolExecutor(4) as pool:
        batches = pool.map(lambda _: model.answer([{"text": text} for text in [*TEXTS, " "]], 3), range(20))
    for answers in batches:
        assert_expected(answers[:3], top=3)
        assert answers[3] == {"error": "is empty"}


class Gate:
    """A model that waits until a test opens it, then answers and records its batches."""

    def __init__(self) -> None:
        self.open, self.started = threading.Event(), threading.Event()
        self.batches: list[list[Any]] = []

    def answer(self, items: Rows, top: int) -> list[Row]:
        rows = items.rows() if isinstance(items, Columns) else items
        self.started.set()
        self.open.wait()
        self.batches.append([row["text"] for row in rows])
        if "broken" in self.batches[-1]:
            raise RuntimeError("a fault of the model")
        return [{"text": row["text"], "top": top} for row in rows]


def texts(*values: object) -> list[Row]:
    return [{"text": value} for value in values]


def test_waiting_requests_share_batches_and_keep_their_order() -> None:
    gate = Gate()
    batcher = Batcher(gate.answer, 3, 10, length=count_characters)
    first = batcher.submit(texts("a"), 1)
    gate.started.wait()
    waiting = [batcher.submit(texts("b"), 1), batcher.submit(texts("c", "d"), 1), batcher.submit(texts("e"), 2)]
    long = batcher.submit(texts("ffff", "g", "hh", "i"), 2)
    gone = batcher.submit(texts("j"), 1)
    with pytest.raises(QueueFullError):
        batcher.submit(texts("k"), 1)
    assert gone.cancel()
    gate.open.set()
    assert first.result() == [{"text": "a", "top": 1}]
    assert [[row["text"] for row in each.result()] for each in waiting] == [["b"], ["c", "d"], ["e"]]
    assert [row["text"] for row in long.result()] == ["ffff", "g", "hh", "i"]
    batcher.close()
    # Another `top` and too many rows begin a batch; the rows of a long request are sorted by length.
    assert gate.batches == [["a"], ["b", "c", "d"], ["e"], ["g", "i", "hh"], ["ffff"]]
    assert (batcher.num_waiting, batcher.num_batches) == (0, 5)


def test_batches_of_long_texts_have_fewer_rows() -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate.answer, 3, 10, length=count_characters)
    half, most = "h" * (LARGEST_BATCH // 2), "m" * (LARGEST_BATCH + 1)
    answers = batcher.submit(texts(half, most, half, "a", half, ["b"]), 1).result()
    batcher.close()
    assert [row["text"] for row in answers] == [half, most, half, "a", half, ["b"]]
    assert gate.batches == [["a", ["b"], half], [half, half], [most]]


def test_event_loop_answers_requests_that_arrived_together_in_batches() -> None:
    gate = Gate()
    gate.open.set()
    batcher = LoopBatcher(gate.answer, 3)

    async def ask(top: int, *values: object) -> object:
        try:
            return [row["text"] for row in await batcher.submit(texts(*values), top)]
        except RuntimeError as error:
            return str(error)

    async def ask_all() -> list[object]:
        gone = batcher.submit(texts("gone"), 2)
        gone.cancel()
        requests = (ask(1, "a"), ask(1, "b", "c"), ask(1, "d"), ask(2, "e"), ask(2, "broken"), ask(3, "f"))
        together = await asyncio.gather(*requests)
        return [*together, await ask(3, "g", "h", "i", "j")]

    fault = "a fault of the model"
    assert asyncio.run(ask_all()) == [["a"], ["b", "c"], ["d"], fault, fault, ["f"], ["g", "h", "i", "j"]]
    assert gate.batches == [["gone"], ["a", "b", "c"], ["d"], ["e", "broken"], ["f"], ["g", "h", "i"], ["j"]]
    assert batcher.num_batches == 6


@pytest.mark.parametrize("rows", [texts(*"abcdefgh"), Columns({"text": [*"abcdefgh"]}, 8)])
def test_a_request_that_nobody_waits_for_ends_with_its_batch(rows: Rows) -> None:
    gate = Gate()
    batcher = Batcher(gate.answer, 2, 100)
    long = batcher.submit(rows, 1)
    gate.started.wait()
    next_one = batcher.submit(texts("i"), 1)
    assert not long.cancel(), "a thread is computing it"
    gate.open.set()
    assert next_one.result() == [{"text": "i", "top": 1}]
    batcher.close()
    assert gate.batches == [["a", "b"], ["i"]]
    assert long.exception() is None
    assert batcher.num_waiting == 0


def test_faults_of_the_model_reach_their_requests_only() -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate.answer, 3, 10)
    with pytest.raises(RuntimeError, match="a fault of the model"):
        batcher.submit(texts("broken"), 1).result()
    assert batcher.submit(texts("a"), 1).result() == [{"text": "a", "top": 1}]
    batcher.close()


def test_full_queue_and_slow_answers(published: Published, loop_clock: LoopClock) -> None:
    gate = Gate()
    batcher = Batcher(gate.answer, 1, 1)
    with TestClient(Service(ServedModel(published.folder), batcher, LIMITS, "1").app()) as client:
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(client.post, "/predict", json={"rows": ["w1"]})
            gate.started.wait()
            loop_clock.later = LIMITS.timeout - 200
            refused = client.post("/predict", json={"rows": ["w2"]})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert not slow.done()
            loop_clock.later = LIMITS.timeout
            assert client.get("/health").status_code == 200  # the loop looks at its clock
            assert slow.result().status_code == 504
        gate.open.set()
    batcher.close()


SERVER = """\
import sys
from functools import partialmethod
import uvicorn
from trainer.cli import main

uvicorn.Config.__init__ = partialmethod(uvicorn.Config.__init__, timeout_keep_alive=600)
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def start(folder: Path, *options: str, script: str = SERVER) -> tuple[subprocess.Popen[str], str]:
    """Start a server in a process without torch; return it and its address.

    It closes no connection before a test expects it, however slow the machine is.
    """
    arguments = ["serve", f"folder={folder}", "port=0", f"timeout={LIMITS.timeout:g}", *options]
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "http://" in line:
            return process, line.partition("http://")[2].split()[0]
    raise AssertionError(process.wait())


def post(address: str, rows: list[str]) -> list[Row]:
    request = Request(f"http://{address}/predict", json.dumps({"rows": rows}).encode(), {"Content-Type": JSON})
    with urlopen(request, timeout=PATIENCE) as response:
        answers: list[Row] = json.loads(response.read())["answers"]
    return answers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_server_after_the_requests_it_has_accepted(published: Published, number: int) -> None:
    process, address = start(published.folder, "max_waiting=100000")
    with ThreadPoolExecutor(8) as pool:
        pending = [pool.submit(post, address, TEXTS * 20) for _ in range(24)]
        pending[0].result()
        os.kill(process.pid, number)
        results = [future.exception() or future.result() for future in pending]
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output.splitlines()[-1][:13]) == (0, "stopped after")
    answered = [result for result in results if isinstance(result, list)]
    assert answered
    for answers in answered:
        assert_expected(answers[:3])
        assert len(answers) == 60
    # The others were not accepted: none was cut off in the middle of its answer. A client may still have been writing.
    refusals = "Connection refused", "Connection reset", "Broken pipe"
    for result in results:
        if not isinstance(result, list):
            assert any(text in str(result) for text in refusals), result
