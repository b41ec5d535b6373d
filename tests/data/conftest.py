"""A small standard library, so that a source of it loads at once."""

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Makes the given sources the library; 100 functions of `cmd` beside them leave no split empty."""
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
