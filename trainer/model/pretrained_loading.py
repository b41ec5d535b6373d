"""Models of transformers: find and change their config, build them, load their weights."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import nn

from trainer import hub
from trainer.display import list_some
from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.layout import Document, expand_home

if TYPE_CHECKING:
    # Takes seconds; a model of ours does not need the library.
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

AutoClass = Literal[
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForImageClassification",
]
Attention = Literal["sdpa", "eager"]

_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FIXED: Final = frozenset({"dtype", "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict"})
"""Config keys that must keep their values for the model to be trainable here."""

_SHOWN: Final = 5
_REMEDY: Final = "Undo the changes in model.config, or set model.pretrained=false for random weights"


# The config


def read_config(path: str, changes: Document) -> PreTrainedConfig:
    """Return the config of the model at `path` with `changes`; changes of nested keys keep the other nested keys.

    Args:
        path: A folder with a `config.json`, or a name on the hub.
        changes: New values by key.

    Raises:
        ConfigError: There is no such model, or its config has no such key.
    """
    config = _load_config(path, {})
    if config.is_encoder_decoder:
        problem = f"is a {config.model_type}, an encoder-decoder model"
        raise ConfigError(format_error("path", problem, "Choose an encoder or a decoder", value=path))
    if not changes:
        return config
    raise_if_any(*_unknown_keys("config", config, changes))
    return _load_config(path, _merge(config, changes))


def find_model(path: str) -> str:
    """Return the folder at `path` if there is one, else `path` as a name on the hub.

    Raises:
        ConfigError: The path is neither a folder with a `config.json` nor a valid name.
    """
    folder = Path(expand_home(path))
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return str(folder)
        raise ConfigError(format_error("path", "has no config.json", "Give the folder of a saved model", value=path))
    if folder.exists():
        raise ConfigError(format_error("path", "is a file", "Give the folder that contains config.json", value=path))
    if not _HUB_NAME.fullmatch(path):
        remedy = "Give the folder of a saved model, or its name on the hub (owner/name)"
        raise ConfigError(format_error("path", "no such folder", remedy, value=path))
    return path


def _is_offline(name: str) -> bool:
    """Return whether the result of `find_model` is not a local folder and the hub cannot be reached."""
    return not Path(name).is_dir() and not hub.is_reachable()


def _not_found(path: str, error: Exception) -> ConfigError:
    """Return the error for a model that cannot be read from its folder or from the hub."""
    reason = str(error).strip().split("\n")[0].rstrip(".")
    if Path(expand_home(path)).is_dir():
        return ConfigError(format_error("path", f"cannot be read ({reason})", value=path))
    if isinstance(error, OSError) and _is_offline(path):
        reason = "the hub cannot be reached, and the model is not in the local cache"
    problem = f"is neither a folder nor a model that the hub provides ({reason})"
    remedy = (
        "Check the name; without a network, download the model elsewhere (hf download NAME --local-dir FOLDER) and "
        "give the folder"
    )
    return ConfigError(format_error("path", problem, remedy, value=path))


def _load_config(path: str, changes: Document) -> PreTrainedConfig:
    from transformers import AutoConfig

    name = find_model(path)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            name, trust_remote_code=False, local_files_only=_is_offline(name), **changes
        )
        return config
    except (OSError, ValueError, KeyError) as error:
        raise _not_found(path, error) from error
    except Exception as error:
        # The library's type checks raise classes that have moved between versions.
        reason = " ".join(str(error).split())
        problem = f"is invalid for this model ({type(error).__name__}: {reason})"
        raise ConfigError(format_error("config", problem, value=changes)) from error


def _unknown_keys(prefix: str, known: Any, changes: Mapping[str, object]) -> Iterator[str]:
    """Yield a message for each key of `changes` that a config, or a mapping in it, does not have."""
    names = list(known) if isinstance(known, Mapping) else _config_keys(known)
    for key, value in changes.items():
        if key not in names:
            yield format_error(f"{prefix}.{key}", "unknown key", did_you_mean(str(key), names), value=value)
            continue
        inner = known[key] if isinstance(known, Mapping) else getattr(known, key, None)
        if isinstance(value, Mapping) and _is_nested(inner):
            yield from _unknown_keys(f"{prefix}.{key}", inner, value)


def _config_keys(config: PreTrainedConfig) -> list[str]:
    own = [name for name in inspect.signature(type(config).__init__).parameters if name not in ("self", "kwargs")]
    return sorted({*own, *config.attribute_map} - _FIXED)


def _is_nested(value: object) -> bool:
    return bool(value) and (isinstance(value, Mapping) or hasattr(value, "attribute_map"))


def _merge(known: Any, changes: Mapping[str, object]) -> Document:
    """Return `changes`, with the other keys of mappings in them filled in."""
    merged = {}
    for key, value in changes.items():
        inner = known.get(key) if isinstance(known, Mapping) else getattr(known, key, None)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            value = {**inner, **_merge(inner, value)}
        merged[key] = value
    return merged


def width_of(config: PreTrainedConfig) -> int:
    """Return the width of the last hidden states or of the last feature map, D.

    Raises:
        ConfigError: The config does not contain it.
    """
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(width, int):
        problem = f"is a {config.model_type}, whose config does not contain the width of its outputs (hidden_size)"
        raise ConfigError(format_error("path", problem))
    return width


# The architecture, which a checkpoint stores


def architecture_of(auto_class: AutoClass, config: PreTrainedConfig) -> Document:
    """Return as JSON what `config_of` and `make_model` need to rebuild a model.

    Raises:
        ConfigError: The model could not be rebuilt, because the config is inconsistent.
    """
    architecture = {"class": auto_class, "config": json.loads(config.to_json_string(use_diff=False))}
    try:
        config_of(architecture)
    except ConfigError as error:
        problem = f"a checkpoint of this model could not be loaded: {error.messages[0]}"
        raise ConfigError(format_error("config", problem, "Correct model.config")) from error
    return architecture


def config_of(architecture: Document) -> tuple[AutoClass, PreTrainedConfig]:
    """Return the class and the config of an `architecture_of`.

    Raises:
        ConfigError: This version of transformers does not support the architecture.
    """
    from transformers import AutoConfig

    names: tuple[AutoClass, ...] = ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")
    classes: dict[str, AutoClass] = {name: name for name in names}
    values = dict(architecture["config"])
    model_type = values.pop("model_type", None)
    try:
        return classes[architecture["class"]], AutoConfig.for_model(model_type, **values)
    except (KeyError, ValueError) as error:
        problem = f"cannot be rebuilt with this version of transformers ({error})"
        raise ConfigError(format_error("architecture", problem, value=model_type)) from error


# The model


def make_model(auto_class: AutoClass, config: PreTrainedConfig, path: str | None, attention: Attention | None) -> Any:
    """Build the model of a config, in float32.

    Args:
        auto_class: The class that selects the model's own class.
        config: The model's config.
        path: Folder or name of the weights; None for random weights.
        attention: The attention implementation; None for the default of transformers.

    Raises:
        ConfigError: There is no such model, or weights are missing.
    """
    import transformers

    auto = getattr(transformers, auto_class)
    arguments: Document = {"dtype": torch.float32, "trust_remote_code": False}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if type(config) not in auto._model_mapping:
        noun = "language model with such a head" if auto_class != "AutoModel" else "model"
        problem = f"is a {config.model_type}, and transformers has no {noun} of this type"
        raise ConfigError(format_error("path", problem, value=path))
    # The model's own pooler is not used, and its weights would get no gradient.
    if "add_pooling_layer" in inspect.signature(auto._model_mapping[type(config)].__init__).parameters:
        arguments["add_pooling_layer"] = False
    with quiet():
        if path is None:
            model = _from_config(auto, config, arguments)
        else:
            # Separates errors in the config from errors in the weights.
            with torch.device("meta"):
                _from_config(auto, config, arguments)
            model = _from_pretrained(auto, config, path, arguments)
    # No key-value cache: training and evaluation do not use it.
    model.config.use_cache = False
    return model


def check_input(base: Any, name: Literal["input_ids", "pixel_values"]) -> None:
    """Raise ConfigError if the model does not take the input: an image model for texts, or a text model for images."""
    if name not in inspect.signature(base.forward).parameters:
        noun = "texts" if name == "input_ids" else "images"
        remedy = "Use model=pretrained for text models, model=pretrained_image for image models"
        raise ConfigError(format_error("path", f"is a {base.config.model_type}, which does not take {noun}", remedy))


def linear_head(features: int, num_outputs: int | None, changes: Document) -> nn.Module:
    """Return a new linear layer; the identity if the features are the output.

    Its weights start as in any `nn.Linear`, with a standard deviation of 1 / sqrt(3 D) for D features. The
    `initializer_range` of a pretrained model, mostly 0.02, is for the layers that were trained; heads of fewer than 768
    features that start with it learn more slowly.

    Args:
        features: Number of features, D.
        num_outputs: Number of outputs.
        changes: Changes of the model's config; an `initializer_range` there holds for the head too, with a bias of 0.
    """
    if num_outputs is None:
        return nn.Identity()
    logger.info("new, with random weights: a linear head of %d outputs", num_outputs)
    head = nn.Linear(features, num_outputs)
    if "initializer_range" in changes:
        nn.init.normal_(head.weight, std=changes["initializer_range"])
        nn.init.zeros_(head.bias)
    return head


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off progress bars and advice of transformers; problems that matter are raised or logged here."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]


def _from_config(auto: Any, config: PreTrainedConfig, arguments: Document) -> PreTrainedModel:
    try:
        model: PreTrainedModel = auto.from_config(config, **arguments)
        return model
    except Exception as error:
        # An inconsistent config can fail with any exception while the model is built.
        problem = f"does not describe a valid model ({type(error).__name__}: {' '.join(str(error).split())})"
        raise ConfigError(format_error("config", problem, "Correct model.config or model.attention")) from error


def _from_pretrained(auto: Any, config: PreTrainedConfig, path: str, arguments: Document) -> PreTrainedModel:
    name = find_model(path)
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": _is_offline(name)}
    model: PreTrainedModel
    try:
        model, info = auto.from_pretrained(name, config=config, **arguments)
    except Exception as error:
        # A damaged file can fail with any exception of its format.
        raise _not_found(path, error) from error
    prefix = f"{model.base_model_prefix}."
    # The base model is `model` itself, or if there is a head, the module of that name.
    inside = prefix if model.base_model is not model else ""
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    lost = [name for name in missing if name.startswith(inside)]
    mismatched = sorted((name, tuple(in_file), tuple(in_model)) for name, in_file, in_model in info["mismatched_keys"])
    problems = []
    if mismatched:
        shapes = [f"{name} {in_file}, in the model {in_model}" for name, in_file, in_model in mismatched]
        problems.append(
            format_error("path", f"has weights of other shapes: {list_some(shapes, _SHOWN)}", _REMEDY, value=path)
        )
    if lost:
        problems.append(format_error("path", f"has no weights for {list_some(lost, _SHOWN)}", _REMEDY, value=path))
    raise_if_any(*problems)
    unused = sorted(info["unexpected_keys"])
    logger.info("weights of %s loaded; not used: %s", path, list_some(unused, _SHOWN) if unused else "none")
    if missing:
        logger.info("new, with random weights: %s", list_some(missing, _SHOWN))
    return model
