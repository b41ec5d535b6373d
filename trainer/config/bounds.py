"""The ranges of numbers, by key: those that a part refuses too, told before torch is loaded and the part is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeGuard

from trainer.errors import format_error
from trainer.ranges import at_least, below_one, fraction, not_negative, positive, share

Range: TypeAlias = Callable[[str, float], str | None]
"""The key and a value to a message for a person, or None for a value in range."""


def within(least: float, most: float, problem: str) -> Range:
    """In range: [least, most]."""
    return lambda key, value: None if least <= value <= most else format_error(key, problem, value=value)


def least(number: int) -> Range:
    """In range: finite and not below `number`."""
    return partial(at_least, least=number)


def whole(key: str, value: float) -> str | None:
    """In range: an integer of at least 0, also where it is written as 2.0."""
    good = value >= 0 and float(value).is_integer()
    return None if good else format_error(key, "must be a whole number of at least 0", value=value)


def above_zero(key: str, value: float) -> str | None:
    """In range: above 0, infinity too."""
    return None if value > 0 else format_error(key, "must be above 0", value=value)


def _above_zero_to_one(key: str, value: float) -> str | None:
    return None if 0 < value <= 1 else format_error(key, "must be above 0 and at most 1", value=value)


def _below_zero(key: str, value: float) -> str | None:
    return None if -math.inf < value < 0 else format_error(key, "must be finite and below 0", value=value)


def _amount(key: str, value: float) -> str | None:
    """An integer is a count: 1 is one, and 1.0 would be all."""
    good = value >= 0 if isinstance(value, int) else 0 <= value < 1
    problem = "must be a share, at least 0 and below 1, or a count, an integer"
    return None if good else format_error(key, problem, value=value)


def _grey_or_colour(key: str, value: float) -> str | None:
    return None if value in (1, 3) else format_error(key, "must be auto, 1 or 3", value=value)


def _finite(key: str, value: float) -> str | None:
    return None if math.isfinite(value) else format_error(key, "must be finite", value=value)


def _layers_of_resnet(key: str, value: float) -> str | None:
    good = value >= 8 and value % 6 == 2
    return None if good else format_error(key, "must be 6n + 2", "Usual are 20, 32, 44, 56 and 110", value=value)


_SEED = within(0, (1 << 64) - 1, "must be at least 0 and below 2 ** 64")

RANGES: dict[str, Range] = {
    "seed": _SEED,
    "train.batch_size": least(1),
    "train.accumulate": least(1),
    "train.max_grad_norm": positive,
    "loader.workers": least(0),
    "loader.prefetch": least(1),
    "loader.eval_batch_size": least(1),
    "loader.limit": least(1),
    "checkpoint.keep": within(2, math.inf, "must be at least 2: one may be damaged"),
    "ema.decay": below_one,
    "data.split.validation": below_one,
    "data.split.test": below_one,
    "task.max_length": within(3, math.inf, "must be at least 3, two of them special tokens"),
    "task.vocab_size": least(100),
    "task.mask_share": fraction,
    "task.dim": least(1),
    "task.max_categories": least(1),
    "task.size": least(1),
    "task.channels": _grey_or_colour,
    "task.std": above_zero,
    "task.augment.crop": whole,
    "task.augment.flip": share,
    "task.augment.rotate": within(0, 180, "must be between 0 and 180"),
    "task.augment.brightness": share,
    "task.augment.contrast": share,
    "task.augment.cutout": whole,
    "task.augment.mixup": not_negative,
    "task.augment.cutmix": not_negative,
    "task.augment.mix_prob": share,
    "model.dim": least(1),
    "model.depth": least(1),
    "model.heads": least(1),
    "model.hidden": least(1),
    "model.channels": least(1),
    "model.patch": least(1),
    "model.width": least(1),
    "model.dropout": below_one,
    "model.noisy_tune": not_negative,
    "model.lora.rank": least(1),
    "model.lora.alpha": positive,
    "model.lora.dropout": below_one,
    "loss.label_smoothing": below_one,
    "loss.weight": not_negative,
    "loss.pos_weight": not_negative,
    "loss.gamma": not_negative,
    "loss.gamma_negative": not_negative,
    "loss.gamma_positive": not_negative,
    "loss.clip": below_one,
    "loss.smooth": positive,
    "loss.temperature": positive,
    "loss.delta": positive,
    "loss.epsilon": least(-1),
    "loss.margin": within(-1, 1, "must be between -1 and 1"),
    "loss.correlation": not_negative,
    "loss.in_features": least(1),
    "loss.cutoffs": least(1),
    "loss.div_value": least(1),
    "optimizer.lr": positive,
    "optimizer.weight_decay": not_negative,
    "optimizer.eps": positive,
    "optimizer.momentum": below_one,
    "optimizer.betas": below_one,
    "optimizer.beta2_decay": _below_zero,
    "optimizer.d": least(1),
    "optimizer.ns_steps": within(1, 99, "must be between 1 and 99"),
    "optimizer.layer_decay": _above_zero_to_one,
    "scheduler.num_cycles": positive,
    "scheduler.min_factor": share,
    "scheduler.max_factor": least(1),
    "scheduler.end_factor": share,
    "scheduler.warmup_factor": share,
    "scheduler.factor": fraction,
    "scheduler.patience": least(0),
    "scheduler.threshold": least(0),
    "scheduler.cooldown": least(0),
    "scheduler.rise_cooldown": least(0),
    "scheduler.window": least(1),
    "scheduler.reset_after": least(1),
    "scheduler.timescale": least(1),
    "scheduler.power": positive,
    "scheduler.div_factor": least(1),
    "scheduler.final_div_factor": least(1),
    "prune.amount": _amount,
    "prune.n": above_zero,
    "export.tolerance": positive,
    "export.metric_budget": not_negative,
    "export.calibration": least(1),
    "export.golden": within(0, 4, "must be 0 to 4"),
    "depth": least(0),
    "steps": least(1),
    "explain": least(1),
    "top": least(1),
    "neighbours": least(1),
    "decode.max_new_tokens": least(1),
    "decode.min_new_tokens": least(0),
    "decode.num_beams": least(1),
    "decode.num_return": least(1),
    "decode.length_penalty": _finite,
    "decode.temperature": positive,
    "decode.top_k": least(0),
    "decode.top_p": _above_zero_to_one,
    "decode.repetition_penalty": positive,
    "decode.no_repeat_ngram": least(0),
    "decode.seed": _SEED,
}
"""Of a key whichever option has it; of a list for each of its numbers."""

RANGES_OF: dict[str, dict[str, Range]] = {
    "trainer.loss.kl_distillation.KlDistillation": {"loss.weight": share},
    "trainer.model.resnet.ResNet": {"model.depth": _layers_of_resnet},
    "trainer.task.multilabel_classification.MultilabelClassification": {"task.threshold": fraction},
    "trainer.task.pair_classification.PairClassification": {
        "data.split.validation": below_one,
        "data.split.test": below_one,
        "task.max_length": within(5, math.inf, "must be at least 5, three of them special tokens"),
    },
}
"""Of a key of one `_target_` alone, in place of that."""


def faults(config: Mapping[str, Any]) -> Iterator[str]:
    """A message for each number out of range; keys that are absent or of the wrong type are passed over."""
    targets = [str(part.get("_target_")) for part in config.values() if isinstance(part, Mapping)]
    own = {key: bound for target in targets for key, bound in RANGES_OF.get(target, {}).items()}
    for key, in_range in (RANGES | own).items():
        value = value_at(config, key)
        messages = (in_range(key, item) for item in (value if isinstance(value, list) else [value]) if is_number(item))
        yield from filter(None, dict.fromkeys(messages))


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is an integer or a float; true and false are neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)
