"""Fixtures for sources: a temporary working folder, and a small standard library that loads at once."""

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that makes the given sources the library, with 100 more functions so that no split is empty."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))

    def make(sources: dict[str, str]) -> None:
        filler = "\n".join(
            f"def filler{n}(x{n}):\n    'What the filler {n} does. Of no use to {n} at all.'" for n in range(100)
        )
        for name, source in {"cmd.py": filler, **sources}.items():
            path = tmp_path / "lib" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")

    return make
