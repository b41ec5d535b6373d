"""Names on the Hugging Face hub: one request with a network, an immediate error without one."""

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
from trainer.hub import is_reachable
from trainer.model.pretrained_loading import read_config
from trainer.task.tokenization import load_tokenizer


@pytest.fixture(autouse=True)
def clear_cache() -> Iterator[None]:
    is_reachable.cache_clear()
    yield
    is_reachable.cache_clear()


@pytest.fixture
def unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Make the hub an address at which no server answers, and forbid libraries to wait before another try."""

    def never(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s")

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(time, "sleep", never)
        yield listening


def test_reachable_hub_is_requested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert is_reachable()
        assert is_reachable()
        server.shutdown()
    assert len(requests) == 1


def test_offline_mode_sends_no_request() -> None:
    assert constants.HF_HUB_OFFLINE
    assert not is_reachable()


def test_closed_port_is_unreachable(unreachable_hub: socket.socket) -> None:
    assert not is_reachable()


def test_silent_server_is_unreachable(unreachable_hub: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable_hub.listen()
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.1")
    assert not is_reachable()


@pytest.mark.usefixtures("unreachable_hub")
def test_no_library_tries_again(tmp_path: Path) -> None:
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
