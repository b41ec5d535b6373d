"""Compiled modules compute what eager ones do, and are compiled once for each shape."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.model.test_gradient_checkpointing import MODELS, inputs_of
from tests.support.jobs import TINY, assert_resumes, checkpoint_files, checkpoint_steps, train, working_in, write_data
from tests.support.pretrained_folders import Folders, layouts, model_of
from tests.support.sources import write_idx
from tests.support.typical import typical
from tests.support.varlen_attention import masked_varlen_attn
from trainer.cli import main
from trainer.errors import ConfigError
from trainer.model import attention, compilation
from trainer.model.compilation import compile_for_training, keep_results_of_graphs
from trainer.model.convnet import ConvNet
from trainer.model.gradient_checkpointing import checkpoint_blocks, find_blocks

# torch hides this warning of its own by replacing `showwarning`.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

CPU = torch.device("cpu")
KINDS = {"resnet": 5, "features": 3, "modernbert": 2}
"""Programs for the blocks of a model: those of most transformers share one."""

Count = Callable[[], int]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """Run compiled programs operation by operation, in the bits of eager mode; return their number so far."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(
        recompile_limit=8, fail_on_recompile_limit_hit=False, skip_nnmodule_hook_guards=True
    ):
        torch._dynamo.reset()
        counters.clear()
        yield lambda: int(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()


def build(name: str, folders: Folders, setting: str = "none") -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name](folders)
    checkpoint_blocks(model, setting)  # type: ignore[arg-type]
    return model


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return all gradients and buffers after one pass with dropout."""
    torch.manual_seed(1)
    model.zero_grad()
    model.train()(**inputs).square().sum().backward()
    computed = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*computed, *(buffer.clone() for buffer in model.buffers()), torch.rand(3)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", typical(MODELS, "text_encoder", "features", "bert"))
def test_compiled_blocks_give_the_same_bits_and_are_compiled_once(name: str, folders: Folders, programs: Count) -> None:
    inputs = inputs_of(eager := build(name, folders))
    model = build(name, folders)
    compile_for_training(find_blocks(model), CPU, dynamic=False)

    assert_equal(gradients(model, inputs), gradients(eager, inputs))
    count = programs()
    assert count == KINDS.get(name, 1)
    assert_equal(gradients(model, inputs), gradients(eager, inputs))
    with torch.inference_mode():
        assert torch.equal(model.eval()(**inputs), eager.eval()(**inputs))
    assert programs() == count


@pytest.mark.parametrize("setting", ["blocks", "selective"])
def test_blocks_may_be_checkpointed(
    setting: str, folders: Folders, programs: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The backend `eager` does not compute checkpointed blocks again with the same random numbers, as others do.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    inputs = inputs_of(eager := build("text_encoder", folders))
    compile_for_training(find_blocks(model := build("text_encoder", folders, setting)), CPU, dynamic=False)

    assert_equal(gradients(model, inputs), gradients(eager, inputs))
    assert programs() > 0


def convnet() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(5, 1, (8, 8), channels=(2, 3), hidden=[4])


def test_containers_of_torch_are_compiled_for_every_shape(programs: Count) -> None:
    eager, model = convnet(), convnet()
    with torch._dynamo.config.patch(recompile_limit=2):  # what torch would stop at, 8 by default
        compile_for_training(blocks := find_blocks(model), CPU, dynamic=False)

        for size in (1, 2, *range(1, 6)):
            inputs = {"pixel_values": torch.randn(size, 1, 8, 8)}
            assert_equal(gradients(model, inputs), gradients(eager, inputs))
    assert programs() == 5 * len(blocks)


def test_too_many_shapes_are_reported(programs: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "MAX_COMPILATIONS", 3)
    model = convnet()
    compile_for_training([model], CPU, dynamic=False)
    for size in (1, 2, 3):
        model(torch.randn(size, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"compile: .* 3 programs .* Set compile=false"):
        model(torch.randn(4, 1, 8, 8))


def test_a_model_for_changing_shapes_is_compiled_as_a_whole(folders: Folders, programs: Count) -> None:
    eager, model = build("decoder", folders), build("decoder", folders)
    compile_for_training([model], CPU, dynamic=True)
    for texts in (4, 3, 7):
        inputs = layouts(texts)[1]
        assert_equal(gradients(model, inputs), gradients(eager, inputs))
    assert programs() <= 2


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("text_encoder", "whole"),
        *(
            pytest.param(name, part, marks=pytest.mark.slow)
            for name, part in [
                *(("bert", "blocks"), ("text_encoder", "blocks"), ("decoder", "blocks"), ("decoder", "whole")),
                ("bert", "whole"),  # of which every layer is traced: seconds
            ]
        ),
    ],
)
def test_variable_length_attention_is_compiled_without_a_break(
    name: str, part: str, folders: Folders, programs: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = attention.Kernel("reference", masked_varlen_attn, frozenset({torch.float32}))
    monkeypatch.setitem(attention.KERNELS, "cpu", kernel)
    no_dropout = {"attention_probs_dropout_prob": 0.0}
    monkeypatch.setitem(MODELS, "bert", lambda folders: model_of(folders("bert"), config=no_dropout))
    eager, model = build(name, folders), build(name, folders)
    is_whole = part == "whole"
    compile_for_training([model] if is_whole else find_blocks(model), CPU, dynamic=is_whole)

    for texts in (13, 14):
        inputs = layouts(texts)[1]
        assert_equal(gradients(model, inputs), gradients(eager, inputs))
    assert programs() > 0
    assert not counters["graph_break"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], list[str]]]:
    folder = tmp_path_factory.mktemp("compiled")
    with working_in(folder):
        write_idx(folder / "idx", 61)
        yield write_data(folder), [f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]


class Recorded(torch.autograd.Function):
    """The identity of a weight, as a graph that writes its gradient to memory of its own."""

    addresses: ClassVar[list[int]] = []

    @staticmethod
    def forward(context: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        own = gradient.clone()
        Recorded.addresses.append(own.data_ptr())
        return own


class Block(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return values @ Recorded.apply(self.weight).T


def test_gradients_leave_the_memory_of_graphs() -> None:
    from torch._inductor.cudagraph_trees import MarkStepBox  # imports all of the compiler

    model = nn.Sequential(Block(3, 3), Block(3, 3))
    model[1].weight.requires_grad_(False)
    keep_results_of_graphs(model, [*model])
    marks = MarkStepBox.mark_step_counter
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(2, 3)).sum().backward()
        weight = model[0].weight
        assert weight.grad is not None
        assert weight.grad.data_ptr() != Recorded.addresses[-1]
    assert abs(MarkStepBox.mark_step_counter - marks) == 2
    model.eval()(torch.randn(2, 3))
    assert abs(MarkStepBox.mark_step_counter - marks) == 2


def test_marked_blocks_are_compiled_once(folders: Folders, programs: Count) -> None:
    inputs = inputs_of(eager := build("text_encoder", folders))
    model = build("text_encoder", folders)
    keep_results_of_graphs(model, find_blocks(model))
    compile_for_training(find_blocks(model), CPU, dynamic=False)
    for _ in range(2):
        assert_equal(gradients(model, inputs), gradients(eager, inputs))
    assert programs() == 1


TEXTS = [*TINY, "train.duration=2ep", "train.eval_every=3"]
IMAGES = [option for option in TEXTS if not option.startswith(("model.", "task."))]
IMAGES += ["data=idx", "task=image_classification", "model=convnet"]
JOBS: dict[str, tuple[list[str], int, int]] = {
    "tokens": ([*TEXTS, "loader.tokens=32", "precision=bf16"], 0, 1),
    # Micro-batches of 4, 3 and 2 samples.
    "fixed": ([*TEXTS, "loader.batching=fixed", "train.accumulate=2", "model.depth=2"], 0, 3),
    "images": ([*IMAGES, "train.accumulate=2"], 1, 8),
    "packed": (TEXTS, 0, 1),
    # The passes at moved weights run the programs of the first pass.
    "embeddings that move": ([*TEXTS, "loader.tokens=32", "perturb=pgd", "perturb.moves=2"], 0, 1),
    "embeddings that move once": ([*TEXTS, "perturb=fgm", "perturb.start=3"], 0, 1),
    "matrices that move": ([*TEXTS, "loader.batching=fixed", "train.accumulate=2", "perturb=awp"], 0, 3),
    "two dropout masks": ([*TEXTS, "loader.tokens=32", "perturb=r_drop"], 0, 1),
}


@pytest.mark.parametrize("name", typical(JOBS, "fixed", "packed"))
def test_jobs_compile_once_for_each_shape(
    name: str, data: tuple[list[str], list[str]], tmp_path: Path, programs: Count
) -> None:
    """The second epoch and evaluation need no program, and a checkpoint has the bits of a run without compilation."""
    options, source, count = JOBS[name]
    job = [*options, *data[source]]
    for run, compiled in (("compiled", "true"), ("eager", "false")):
        assert main(["train", *job, f"run.dir={tmp_path / run}", f"compile={compiled}"]) == 0
    assert programs() == count
    end = checkpoint_steps(tmp_path / "eager")[-1]
    assert checkpoint_files(tmp_path / "compiled", end) == checkpoint_files(tmp_path / "eager", end)


@pytest.mark.skipif(torch.cuda.is_available(), reason="graphs are an error only without CUDA")
@pytest.mark.parametrize("option", ["loader.batching=fixed", "loader.tokens=32"])
def test_graphs_need_cuda(
    option: str, data: tuple[list[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [*data[0], option, "compile=graphs", "device=auto", "train.duration=1"]
    assert train(tmp_path, *job) == 2
    message = "compile: graphs needs CUDA, but this machine trains on cpu, got 'graphs'. Set compile=true.\n"
    assert capsys.readouterr().err == message


@pytest.mark.slow
def test_compiled_runs_resume_bitwise_equal(data: tuple[list[str], list[str]], tmp_path: Path) -> None:
    job = [*data[0], "loader.tokens=32", "compile=true", "train.duration=12", "train.eval_every=4"]
    assert train(tmp_path / "run", *job, "checkpoint.every=1", "checkpoint.keep=12") == 0
    for step in (3, 8):
        torch._dynamo.reset()
        assert_resumes(tmp_path / "run", step)
