"""Without a network a name of the hub is told of at once, and with one it is asked for."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from trainer.data.cells import ROLE_NOUNS
from trainer.data.hub import Hub
from trainer.errors import ConfigError, DataError
from trainer.hub import reachable
from trainer.model.pretrained_loading import read_config
from trainer.task.tokenization import load_tokenizer


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    reachable.cache_clear()
    yield
    reachable.cache_clear()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The hub is an address at which nobody answers, and no library may wait before it asks again."""

    def never(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s")

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(time, "sleep", never)
        yield listening


def test_a_hub_that_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert reachable()
        assert reachable()
        server.shutdown()
    assert len(asked) == 1


def test_a_hub_that_nobody_may_ask_is_not_asked() -> None:
    assert constants.HF_HUB_OFFLINE
    assert not reachable()


def test_an_address_at_which_nothing_is(nobody: socket.socket) -> None:
    assert not reachable()


def test_an_address_that_says_nothing(nobody: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody.listen()
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.1")
    assert not reachable()


@pytest.mark.usefixtures("nobody")
def test_no_library_tries_again_and_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tokenizer: no such file, and the hub cannot be reached, got 'own/name'\."):
        load_tokenizer("own/name")
    with pytest.raises(ConfigError, match=r"^path: is neither a folder nor .* \(the hub cannot be reached"):
        read_config("own/name", {})
    columns: dict[str, str | list[str] | None] = dict.fromkeys(ROLE_NOUNS, "text")
    source = Hub(
        path="own/name",
        name=None,
        revision=None,
        splits={"train": "train", "validation": None, "test": None},
        columns=columns,
        split={"validation": 0.1, "test": 0.1},
        list_separator="|",
        cache_dir=str(tmp_path),
    )
    with pytest.raises(
        DataError, match=r"^data\.path: .*, got 'own/name'\. Without a network, load it on another machine"
    ):
        source.load(("text", "label"))
