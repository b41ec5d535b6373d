"""The run folders that this user has made: their document of trackers has a checksum with a key of the user."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from trainer.errors import TrainerError
from trainer.files.atomic_io import write_text
from trainer.layout import TRACKERS, Document
from trainer.shapes import DocumentError, parse_json, read_bytes, to_json

_SEAL = "seal"
_KEY_BYTES = 32
_MAX_BYTES = 1 << 16


def read_tracker_ids(folder: Path) -> dict[str, str] | None:
    """Return the ids of a run in its trackers, by their names; None if this user has not written them."""
    try:
        document: dict[str, str] = parse_json(read_bytes(folder / TRACKERS, _MAX_BYTES), {str: str})
        key = _key_file().read_bytes()
    except (OSError, DocumentError, RuntimeError):
        return None
    seal = document.pop(_SEAL, "")
    return document if hmac.compare_digest(seal.encode(errors="replace"), _seal(document, key).encode()) else None


def write_tracker_ids(folder: Path, ids: dict[str, str]) -> None:
    """Write the ids of a run of this user; without a home folder, a resume takes the run for another user's."""
    try:
        document: Document = {**ids, _SEAL: _seal(ids, _user_key())}
    except (OSError, RuntimeError, TrainerError):
        document = dict(ids)
    write_text(folder / TRACKERS, to_json(document) + "\n")


def _seal(ids: dict[str, str], key: bytes) -> str:
    return hmac.new(key, repr(sorted(ids.items())).encode(errors="replace"), "sha256").hexdigest()


def _user_key() -> bytes:
    """Return the key of the user, and make it at the first call."""
    file = _key_file()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # Of two processes that make it at once, the second reads what the first has linked into place.
        staged = file.with_name(f"{file.name}.{os.getpid()}")
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as new:
            new.write(secrets.token_bytes(_KEY_BYTES))
        try:
            os.link(staged, file)
        finally:
            staged.unlink()
    except FileExistsError:
        pass
    return file.read_bytes()


def _key_file() -> Path:
    root = os.environ.get("XDG_STATE_HOME")
    return (Path(root) if root else Path.home() / ".local" / "state") / "trainer" / "key"
