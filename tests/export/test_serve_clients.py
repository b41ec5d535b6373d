"""The HTTP server and clients that do not behave: damaged, huge, endless and slow requests, and many at once."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from tests.export.conftest import LoopClock, Published
from tests.export.test_serve import JSON, LIMITS, SERVER, Gate, start
from tests.support.processes import PATIENCE
from trainer.serve.app import Service
from trainer.serve.batcher import Batcher
from trainer.serve.connection import MAX_HEAD_BYTES
from trainer.serve.model import ServedModel
from trainer.serve.openapi import STATUSES

MAX_BYTES = 200_000
DOCS = Path(__file__).parents[2] / "docs/export.md"


@pytest.fixture(scope="module")
def server(published: Published) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    process, address = start(published.folder, f"max_bytes={MAX_BYTES}", "max_rows=8", "threads=1")
    host, _, port = address.partition(":")
    yield process, (host, int(port))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "Traceback" not in output


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == JSON
        return str(json.loads(self.body)["error"])


class Client:
    """A connection that sends bytes as they are."""

    def __init__(self, server: tuple[object, tuple[str, int]]) -> None:
        self.socket = socket.create_connection(server[1], timeout=PATIENCE)
        self.stream = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, *, has_body: bool = True) -> Answer:
        status = self.stream.readline().split()
        lines = [line.decode().strip() for line in iter(self.stream.readline, b"\r\n")]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = self.stream.read(int(headers["content-length"])) if has_body else b""
        return Answer(int(status[1]), headers, body)

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.read(has_body=not data.startswith(b"HEAD"))

    def wait_until_read(self) -> None:
        """Return once the server has read everything that was sent."""
        here, there = (f":{port:04X}" for port in (self.socket.getsockname()[1], self.socket.getpeername()[1]))
        unread = True
        while unread:
            lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
            queues = {tuple(end[-5:] for end in line[1:3]): line[4].split(":") for line in lines}
            unread = int(queues[here, there][0], 16) > 0 or int(queues[there, here][1], 16) > 0

    def is_closed(self) -> bool:
        """Wait for the end of the connection."""
        try:
            return self.stream.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


def ask_once(server: tuple[object, tuple[str, int]], data: bytes) -> Answer:
    """Return the answer to a request of a connection of its own."""
    client = Client(server)
    answer = client.ask(data)
    client.close()
    return answer


@pytest.fixture
def client(server: tuple[object, tuple[str, int]]) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.close()


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: here", *headers, "", ""]).encode()


def post(body: bytes, kind: str = JSON) -> bytes:
    return head("POST /predict", f"Content-Type: {kind}", f"Content-Length: {len(body)}") + body


GOOD = post(b'{"rows": ["w1"]}')
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "not HTTP": (b"nonsense\r\n\r\n", 400, "the request is not HTTP/1.1. Send it with"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400, "the request is not HTTP/1.1"),
    "two lengths": (
        head("POST /predict", "Content-Length: 1", "Content-Length: 2") + b"{}",
        400,
        "the request is not HTTP/1.1",
    ),
    "a path above": (head("GET /../../../../etc/passwd"), 404, "no such path, got /../../../../etc/passwd. Known: "),
    "a hidden path above": (head("GET /%2e%2e/%2e%2e/etc/passwd"), 404, "no such path, got /../../etc/passwd."),
    "a path below a file": (head("GET /form.js/../predict"), 404, "no such path"),
    "no redirect": (head("GET /predict/"), 404, "no such path, got /predict/. Known: /predict, /"),
    "a long path": (head(f"GET /{'x' * 2000}"), 404, f"got /{'x' * 299}…. Known"),
    "a script as path": (head("GET /<script>"), 404, "no such path"),
    "OPTIONS": (head("OPTIONS /predict", "Origin: http://elsewhere"), 405, "does not answer OPTIONS. Use POST."),
    "TRACE": (head("TRACE /health"), 405, "does not answer TRACE. Use "),
    "no type": (head("POST /predict", "Content-Length: 2") + b"{}", 415, "application/json, got no such header."),
    "a form": (post(b"rows=1", "application/x-www-form-urlencoded"), 415, "got application/x-www-form-urlencoded."),
    "gzip": (
        head("POST /predict", f"Content-Type: {JSON}", "Content-Encoding: gzip", "Content-Length: 2") + b"{}",
        415,
        "the body is compressed, got Content-Encoding: gzip.",
    ),
    "a repeated key": (post(b'{"rows": ["w1"], "rows": ["w2"]}'), 400, "the field 'rows' appears twice in an object."),
    "a repeated column": (post(b'{"rows": [{"text": "a:b", "text" : "w2"}]}'), 400, "the field 'text' appears twice"),
    "a large body": (
        post(b'{"rows": ["' + b"w" * 20 * MAX_BYTES + b'"]}'),
        413,
        f"larger than {MAX_BYTES} bytes (max_bytes)",
    ),
    "many objects": (
        post(b'{"rows": [' + b"{}," * 60_000 + b"{}]}"),
        413,
        "at most 8 per request (max_rows), got 60001",
    ),
    "deep": (post(b"[" * 150_000), 400, "nested too deeply"),
    "deep in a row": (post(b'{"rows": [' + b"[" * 99 + b"]" * 99 + b"]}"), 400, "nested more than 100 levels deep"),
    "infinity": (post(b'{"rows": [{"text": 1e999}]}'), 400, "rows[0].text: contains the number inf"),
    "a long field": (post(b'{"rows": ["w1"], "' + b"x" * 100_000 + b'": 1}'), 400, f"'{'x' * 300}…'"),
    "no usable row": (
        post(b'{"rows": [{"' + b"x" * 100_000 + b'": 1}]}'),
        422,
        "rows[0]: has no column 'text'. It has",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_short_json_and_the_connection_stays(client: Client, name: str) -> None:
    request, status, problem = REFUSED[name]
    answer = client.ask(request)
    assert (answer.status, answer.headers.get("retry-after")) == (status, None)
    assert problem in answer.error
    assert len(answer.body) < 2000
    if answer.headers.get("connection") == "close":
        assert "not HTTP" in answer.error
        assert client.is_closed()
    else:
        assert client.ask(GOOD).status == 200


def test_head_has_the_headers_of_get(client: Client) -> None:
    answer = client.ask(head("HEAD /health"))
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert client.ask(head("HEAD /predict")).headers["allow"] == "POST"
    assert client.ask(GOOD).status == 200


@pytest.mark.parametrize("pieces", ["one header", "many headers", "the path"])
def test_headers_without_an_end_are_refused(client: Client, pieces: str) -> None:
    begin = b"GET /" if pieces == "the path" else b"GET / HTTP/1.1\r\nHost: here\r\nX: "
    piece = b"\r\nX: 1" * 16_000 if pieces == "many headers" else b"x" * 64_000
    assert len(piece) * 40 > 10 * MAX_HEAD_BYTES
    client.send(begin)
    try:
        for _ in range(40):
            client.send(piece)
        answer = client.read()
    except (ConnectionError, IndexError):  # the server has closed while the client was sending
        return
    assert answer.status == 431


@pytest.mark.parametrize("before", ["nothing", "an answer", "a large body"])
def test_headers_that_are_too_large_are_refused(client: Client, before: str) -> None:
    if before != "nothing":
        assert client.ask(GOOD if before == "an answer" else REFUSED[before][0]).status in (200, 413)
    client.wait_until_read()  # the pieces arrive apart from each other, and from the rest of the body
    client.send(b"GET / HTTP/1.1\r\nHost: here\r\nX: ")
    client.wait_until_read()
    answer = client.ask(b"x" * MAX_HEAD_BYTES)
    assert (answer.status, answer.error) == (431, f"the headers are larger than {MAX_HEAD_BYTES} bytes. Send fewer.")


SLOW_SERVER = f"""\
import signal, time
from asyncio import BaseEventLoop

later = 0.0


def set_forward(*_):
    global later
    later += 400.0


signal.signal(signal.SIGUSR1, set_forward)
BaseEventLoop.time = lambda loop: time.monotonic() + later
{SERVER.replace("keep_alive=600", "keep_alive=600, loop='asyncio'")}"""
"""The script of a server that SIGUSR1 sets forward by 400 seconds."""


def test_slow_clients_are_refused_and_do_not_delay_others(published: Published) -> None:
    process, address = start(published.folder, "threads=1", script=SLOW_SERVER)
    host, _, port = address.partition(":")
    server = process, (host, int(port))
    silent, slow_head, slow_body, rest, second = clients = [Client(server) for _ in range(5)]
    assert second.ask(GOOD).status == 200
    second.send(b"GET / HTTP/1.1\r\n")
    slow_head.send(b"GET / HTTP/1.1\r\nX: ")
    slow_body.send(post(b" " * 50)[:-20])
    # The rest of a body that was refused is read, but not for ever.
    assert rest.ask(head("POST /predict", f"Content-Type: {JSON}", "Content-Length: 999999999") + b"x").status == 413
    for seconds in (400, 600):
        for slow in (slow_head, rest):
            slow.send(b"x")  # which does not begin the time anew
            slow.wait_until_read()
        quick = Client(server)
        assert quick.ask(GOOD).status == 200
        assert not select.select([each.socket for each in clients], [], [], 0)[0], f"refused before {seconds} s"
        process.send_signal(signal.SIGUSR1)
        quick.close()
    assert ask_once(server, GOOD).status == 200  # the loop looks at its clock
    answers = [each.read() for each in (slow_head, slow_body, second)]
    assert silent.is_closed()
    assert rest.is_closed()
    assert {answer.status for answer in answers} == {408}
    assert all(f"did not arrive within {LIMITS.timeout:g} seconds (timeout)" in answer.error for answer in answers)
    for each in clients:
        each.close()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in output) == (0, False)


def test_many_connections_are_answered(server: tuple[Any, tuple[str, int]]) -> None:
    clients = [Client(server) for _ in range(200)]
    for _ in range(2):
        for client in clients:
            client.send(GOOD)
        assert {client.read().status for client in clients} == {200}
    for client in clients:
        client.close()


def test_clients_that_leave_are_no_faults(server: tuple[Any, tuple[str, int]]) -> None:
    for data in (b"", b"GET /", post(b" " * 50)[:-20], GOOD):
        client = Client(server)
        client.send(data)
        client.close()
    assert ask_once(server, GOOD).status == 200


def test_clients_that_have_closed_their_own_side_are_answered(server: tuple[Any, tuple[str, int]]) -> None:
    for requests, statuses in ((GOOD, [200]), (GOOD * 3, [200] * 3), (post(b"{") + GOOD, [400, 200]), (GOOD[:-1], [])):
        client = Client(server)
        client.send(requests)
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.read().status for _ in statuses] == statuses
        assert client.is_closed()
        client.close()


def test_nothing_is_lost_at_the_end_of_kept_connections(published: Published) -> None:
    process, address = start(published.folder, "threads=1", "max_waiting=100000")
    host, _, port = address.partition(":")
    answered = [0] * 16

    def run(number: int) -> str:
        client = Client((process, (host, int(port))))
        try:
            while True:
                client.send(GOOD)
                first = client.stream.read(1)
                if not first:
                    return "closed between two answers"
                line = client.stream.readline()
                assert b" 200 " in line, line
                length = 0
                for header in iter(client.stream.readline, b"\r\n"):
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.partition(b":")[2])
                body = client.stream.read(length)
                assert len(json.loads(body)["answers"]) == 1
                answered[number] += 1
        except (ConnectionResetError, BrokenPipeError):
            return "closed between two answers"
        finally:
            client.close()

    with ThreadPoolExecutor(len(answered)) as pool:
        ends = pool.map(run, range(len(answered)))
        while min(answered) < 3:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert set(ends) == {"closed between two answers"}
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output.splitlines()[-1][:13]) == (0, "stopped after")


def test_docs_list_every_status(published: Published, loop_clock: LoopClock) -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert {int(status): text for status, text in rows} == STATUSES
    # Slow clients and large headers, which other tests send, get 408 and 431.
    given = {status for _, status, _ in REFUSED.values()} | {200, 408, 431}
    gate = Gate()
    batcher = Batcher(gate.answer, 1, 1)
    app = Service(ServedModel(published.folder), batcher, LIMITS, "1").app()
    with TestClient(app, raise_server_exceptions=False) as client, ThreadPoolExecutor() as pool:
        slow = pool.submit(client.post, "/predict", json={"rows": ["w1"]})
        gate.started.wait()
        given.add(client.post("/predict", json={"rows": ["w2"]}).status_code)
        loop_clock.later = LIMITS.timeout
        given |= {client.get("/health").status_code, slow.result().status_code}
        gate.open.set()
        fault = client.post("/predict", json={"rows": ["broken"]})
        while fault.status_code == 503:  # the row before it has not ended yet
            fault = client.post("/predict", json={"rows": ["broken"]})
        assert fault.json() == {"error": "the server has a fault (RuntimeError), which its log describes."}
        assert 'trainer_requests_total{status="500"} 1' in client.get("/metrics").text
    batcher.close()
    assert given | {fault.status_code} == set(STATUSES)
