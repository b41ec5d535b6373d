"""The config of a model of transformers: found by path or name, changed key by key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trainer import hub
from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any

_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FIXED: Final = frozenset({"dtype", "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict"})
"""Keys of a config that must stay as they are, for the model to be one that trains here."""


def read_config(path: str, changes: Mapping[str, Any]) -> Any:
    """The config of the model at `path`, with `changes` of its keys; of nested keys, those given alone.

    Args:
        path: A folder with a `config.json`, or a name on the hub.
        changes: New values by key.

    Raises:
        ConfigError: There is no such model, or it has no such key; in the order in which a person would mend them.
    """
    config = _read(path, {})
    if config.is_encoder_decoder:
        problem = f"is a {config.model_type}, which has an encoder and a decoder"
        raise ConfigError(format_error("path", problem, "Models with one of them are supported", value=path))
    if not changes:
        return config
    raise_if_any(*_unknown("config", config, changes))
    return _read(path, _merged(config, changes))


def place_of(path: str) -> str:
    """The folder of `path` where there is one, else `path`, to be looked for on the hub.

    Raises:
        ConfigError: It is neither a folder with a `config.json` nor a possible name.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        if (place / "config.json").is_file():
            return str(place)
        raise ConfigError(format_error("path", "has no config.json", "Give the folder of a saved model", value=path))
    if place.exists():
        raise ConfigError(format_error("path", "is a file", "Give the folder that holds config.json", value=path))
    if not _HUB_NAME.fullmatch(path):
        remedy = "Give the folder of a saved model, or its name on the hub (owner/name)"
        raise ConfigError(format_error("path", "there is no such folder", remedy, value=path))
    return path


def is_offline(place: str) -> bool:
    """Whether what `place_of` gave is not here, and the hub cannot be asked for it."""
    return not Path(place).is_dir() and not hub.reachable()


def not_found(path: str, error: Exception) -> ConfigError:
    """The message for a model that is not in its folder, or that the hub does not give."""
    reason = str(error).strip().split("\n")[0].rstrip(".")
    if Path(path).expanduser().is_dir():
        return ConfigError(format_error("path", f"cannot be read ({reason})", value=path))
    if isinstance(error, OSError) and is_offline(path):
        reason = "it cannot be reached, and its cache here lacks it"
    remedy = (
        "Check the name; without a network, fetch it elsewhere (hf download NAME --local-dir FOLDER) and "
        "give the folder"
    )
    return ConfigError(
        format_error("path", f"is no folder here, and the hub does not give it ({reason})", remedy, value=path)
    )


def _read(path: str, changes: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    place = place_of(path)
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=is_offline(place), **changes)
    except (OSError, ValueError, KeyError) as error:
        raise not_found(path, error) from error
    except Exception as error:
        # Its own checks of types raise classes that moved between versions.
        reason = " ".join(str(error).split())
        raise ConfigError(
            format_error("config", f"is refused by {type(error).__name__} ({reason})", value=changes)
        ) from error


def _unknown(prefix: str, known: Any, changes: Mapping[str, Any]) -> Iterator[str]:
    """A message for each key of `changes` that a config, or a mapping in it, does not have."""
    names = list(known) if isinstance(known, Mapping) else _keys(known)
    for key, value in changes.items():
        if key not in names:
            yield format_error(f"{prefix}.{key}", "there is no such key", did_you_mean(str(key), names), value=value)
            continue
        inner = known[key] if isinstance(known, Mapping) else getattr(known, key, None)
        if isinstance(value, Mapping) and _nested(inner):
            yield from _unknown(f"{prefix}.{key}", inner, value)


def _keys(config: Any) -> list[str]:
    own = [name for name in inspect.signature(type(config).__init__).parameters if name not in ("self", "kwargs")]
    return sorted({*own, *config.attribute_map} - _FIXED)


def _nested(value: Any) -> bool:
    return bool(value) and (isinstance(value, Mapping) or hasattr(value, "attribute_map"))


def _merged(known: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes`, with what a mapping of them leaves out."""
    merged = {}
    for key, value in changes.items():
        inner = known.get(key) if isinstance(known, Mapping) else getattr(known, key, None)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            value = {**inner, **_merged(inner, value)}
        merged[key] = value
    return merged
