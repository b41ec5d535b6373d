"""Models of transformers: made from their config, with the weights of a checkpoint or random ones."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import nn

from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.model.pretrained_config import is_offline, not_found, place_of

logger = logging.getLogger(__name__)

Kind = Literal[
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForImageClassification",
]
Attention = Literal["sdpa", "eager"]
_SHOWN: Final = 5


def architecture_of(kind: Kind, config: Any) -> dict[str, Any]:
    """What `config_of` and `make_model` need to make a model again, as JSON.

    Raises:
        ConfigError: They could not: the config holds what does not go together.
    """
    architecture = {"class": kind, "config": json.loads(config.to_json_string(use_diff=False))}
    try:
        config_of(architecture)
    except ConfigError as error:
        problem = f"a checkpoint could not be read with it: {error.messages[0]}"
        raise ConfigError(format_error("config", problem, "Mend model.config")) from error
    return architecture


def config_of(architecture: dict[str, Any]) -> tuple[Kind, Any]:
    """The class and the config of an `architecture_of`.

    Raises:
        ConfigError: This version of transformers does not know it.
    """
    from transformers import AutoConfig

    kinds: dict[str, Kind] = {kind: kind for kind in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM")}
    values = dict(architecture["config"])
    model_type = values.pop("model_type", None)
    try:
        return kinds[architecture["class"]], AutoConfig.for_model(model_type, **values)
    except (KeyError, ValueError) as error:
        problem = f"the architecture cannot be made again by this version of transformers ({error})"
        raise ConfigError(format_error("architecture", problem, value=model_type)) from error


def make_model(kind: Kind, config: Any, path: str | None, attention: Attention | None) -> Any:
    """The model of a config, in float32.

    Args:
        kind: The class that picks the model's own.
        config: Its config.
        path: Where its weights are; None: they are random.
        attention: The implementation of attention; None: transformers' choice.

    Raises:
        ConfigError: There is no such model, or its weights are not all there.
    """
    import transformers

    auto = getattr(transformers, kind)
    arguments: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
    if attention is not None:
        arguments["attn_implementation"] = attention
    if type(config) not in auto._model_mapping:
        what = "language model with such a head" if kind != "AutoModel" else "model"
        problem = f"is a {config.model_type}, of which transformers has no {what}"
        raise ConfigError(format_error("path", problem, value=path))
    # A pooler of its own is not used, and would be weights that no gradient reaches.
    if "add_pooling_layer" in inspect.signature(auto._model_mapping[type(config)].__init__).parameters:
        arguments["add_pooling_layer"] = False
    with quiet():
        if path is None:
            model = _made(auto, config, arguments)
        else:
            # What is wrong with the config is found apart from what is wrong with the weights.
            with torch.device("meta"):
                _made(auto, config, arguments)
            model = _loaded(auto, config, path, arguments)
    # No cache of keys and values: nothing here reads one.
    model.config.use_cache = False
    return model


def refuse_unread(base: Any, read: Literal["input_ids", "pixel_values"]) -> None:
    """Raises for a model that does not take `read`: one of images for texts, or the other way round."""
    if read not in inspect.signature(base.forward).parameters:
        what = "texts" if read == "input_ids" else "images"
        remedy = "model=pretrained takes models of texts, model=pretrained_image those of images"
        raise ConfigError(format_error("path", f"is a {base.config.model_type}, which reads no {what}", remedy))


def checkpoint_gradients(model: Any) -> None:
    """Keeps no activations inside the blocks: they are computed again on the way back."""
    try:
        # Its new name; the old one warns where there are both.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except ValueError as error:
        problem = f"{type(model).__name__} has no gradient checkpointing"
        raise ConfigError(format_error("gradient_checkpointing", problem, "Set it to false", value=True)) from error


def linear_head(features: int, num_outputs: int | None, config: Any) -> nn.Module:
    """A new linear layer, initialized as transformers' own heads; the identity where the features are the output."""
    if num_outputs is None:
        return nn.Identity()
    logger.info("new, with random weights: a linear head of %d outputs", num_outputs)
    head = nn.Linear(features, num_outputs)
    nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
    nn.init.zeros_(head.bias)
    return head


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor advice of transformers; what matters is raised or logged here."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]


def _made(auto: Any, config: Any, arguments: dict[str, Any]) -> Any:
    try:
        return auto.from_config(config, **arguments)
    except Exception as error:
        # A config that fits no model fails in any way while the model is made of it.
        problem = f"no model can be made of it ({type(error).__name__}: {' '.join(str(error).split())})"
        raise ConfigError(format_error("config", problem, "Mend model.config, or model.attention")) from error


def _loaded(auto: Any, config: Any, path: str, arguments: dict[str, Any]) -> Any:
    place = place_of(path)
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "local_files_only": is_offline(place)}
    try:
        model, found = auto.from_pretrained(place, config=config, **arguments)
    except Exception as error:
        # A damaged file fails as its format does.
        raise not_found(path, error) from error
    prefix = f"{model.base_model_prefix}."
    # The base model is `model` itself, or, beside a head, the module of that name.
    inside = prefix if model.base_model is not model else ""
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    lost = [name for name in missing if name.startswith(inside)]
    other = sorted((name, tuple(in_file), tuple(in_model)) for name, in_file, in_model in found["mismatched_keys"])
    faults = []
    if other:
        shown = [f"{name} {in_file}, the model {in_model}" for name, in_file, in_model in other]
        faults.append(format_error("path", f"has weights of other shapes: {_some(shown)}", _REMEDY, value=path))
    if lost:
        faults.append(format_error("path", f"has no weights for {_some(lost)}", _REMEDY, value=path))
    raise_if_any(*faults)
    unused = sorted(found["unexpected_keys"])
    logger.info("weights of %s loaded; not used: %s", path, _some(unused) if unused else "none")
    if missing:
        logger.info("new, with random weights: %s", _some(missing))
    return model


_REMEDY: Final = "Take back the changes in model.config, or set model.pretrained=false for random weights"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
