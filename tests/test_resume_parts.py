"""Every optimizer, schedule, loss with a state of its own, and task: resumed runs end in the same bytes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, events, without_clock, working_in, write_roles
from tests.support.sources import write_sources
from trainer.cli import main

CONF = Path(__file__).parent.parent / "conf"
STEPS = 12
STOP = 5
Figure = Callable[[str, int, int], None]

TEXT = tuple(option for option in TINY if not option.startswith("model."))
OPTIMIZERS = [file.stem for file in sorted((CONF / "optimizer").glob("*.yaml"))]
SMALL = ("model.dim=16", "model.depth=1", "model.heads=2", "model.hidden=16")
PLAIN = {
    "muon, layer decay, by pattern": [
        "optimizer=muon",
        "optimizer.layer_decay=0.8",
        'optimizer.overrides=[{match:"head*",lr:0.01}]',
    ],
    "reduce_on_plateau": ["optimizer=adam", "scheduler=reduce_on_plateau", "scheduler.every=2", "scheduler.patience=0"],
    "pruned": ["prune=random", "prune.amount=0.5", "optimizer=muon", "train.accumulate=2", "ema.decay=0.9"],
    "hierarchical_softmax": ["loss=hierarchical_softmax", "loss.in_features=16", "ema.decay=0.9"],
}
SLOW = {
    **{f"optimizer {name}": [f"optimizer={name}"] for name in OPTIMIZERS},
    "NAdam": ["optimizer._target_=torch.optim.NAdam", "optimizer.lr=1e-3"],
    "greedy": ["scheduler=greedy", "scheduler.every=2"],
    "adaptive_softmax": ["loss=adaptive_softmax", "loss.in_features=16", "loss.cutoffs=[1]"],
    "multilabel": ["task=multilabel_classification"],
    "pairs": ["task=pair_classification"],
    "numbers": ["task=regression"],
    "tags": ["task=token_classification"],
    "masked": ["task=masked_lm"],
    "language": ["task=causal_lm"],
    "embedding": ["task=sentence_embedding", "task.supervision=triplets"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("resume-parts")
    with working_in(made):
        write_sources(made)
        yield made


def check(run: Path, options: list[str], figure: Figure) -> None:
    lengths = [f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]
    resumed = run.with_name("resumed")
    assert main(["train", *options, *TEXT[2:], *lengths, f"run.dir={run}"]) == 0
    shutil.copytree(run, resumed)
    for path in (resumed / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > STOP:
            shutil.rmtree(path)
    assert main(["train", f"resume={resumed}"]) == 0

    assert checkpoint_files(resumed, STEPS) == checkpoint_files(run, STEPS)
    tail = [event for event in events(resumed) if event["event"] != "resume"]
    after = [event for event in events(run) if event["step"] > STOP]
    assert without_clock(tail[-len(after) :]) == without_clock(after)
    figure("resumed runs of every part equal to the byte", 1, 1)


@pytest.mark.parametrize("name", PLAIN)
def test_parts_with_a_state_of_their_own(name: str, folder: Path, tmp_path: Path, figure: Figure) -> None:
    check(tmp_path / "whole", [*write_roles(folder), *TEXT[:2], *SMALL, *PLAIN[name]], figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_part(name: str, folder: Path, tmp_path: Path, figure: Figure) -> None:
    check(tmp_path / "whole", [*SLOW[name], *write_roles(folder), *TEXT[:2], *SMALL], figure)


AUGMENTED = "task.augment={crop:1,flip:0.5,rotate:10,cutout:3}"
MIXED = "task.augment={crop:1,mixup:0.2,cutmix:1.0,mix_prob:0.8}"
IMAGES = {
    "convnet": ["model=convnet"],
    "resnet, workers, accumulation": ["model=resnet", "loader.workers=2", "train.accumulate=2"],
    "vit": ["model=vit", *SMALL, "model.patch=7"],
    "resnet, channels last, pruned": ["model=resnet", "model.channels_last=true", "prune=ln"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_augmented_images(name: str, folder: Path, tmp_path: Path, figure: Figure) -> None:
    source = ["task=image_classification", "data=idx", f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]
    check(tmp_path / "whole", [*source, *IMAGES[name], AUGMENTED], figure)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_mixed_images(loss: str, folder: Path, tmp_path: Path, figure: Figure) -> None:
    source = ["task=image_classification", "data=idx", f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]
    feeding = ["loader.workers=2", "train.accumulate=2"]
    check(tmp_path / "whole", [*source, "model=convnet", MIXED, f"loss={loss}", *feeding], figure)
