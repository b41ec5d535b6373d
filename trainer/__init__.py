"""A config-driven training tool: exact resumption, proved artifacts, errors before torch loads.

`train` and `load` return a `Run`; `TrainerError` is the error that a user can fix.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.errors import TrainerError as TrainerError
    from trainer.library import Run as Run
    from trainer.library import load as load
    from trainer.library import train as train

__version__ = "0.1.0"
__all__ = ["Run", "TrainerError", "__version__", "load", "train"]


def __getattr__(name: str) -> object:
    """Import the library when it is first used: every command starts with this module."""
    if name in __all__:
        return getattr(import_module("trainer.errors" if name == "TrainerError" else "trainer.library"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
