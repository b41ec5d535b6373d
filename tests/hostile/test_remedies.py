"""Remedies that messages about a job name: each one is carried out, and the job is then accepted."""

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

import trainer
from tests.support.jobs import TINY, working_in, write_roles
from trainer.cli import WITHOUT_TORCH, main
from trainer.config.help import verb_help
from trainer.config.jobs import JOBS as JOB_TYPES
from trainer.config.jobs import stored_sections
from trainer.errors import MEMORY_REMEDIES

TABS = ("data=files", "data.train=tabs.csv")
HANZI = ("data=files", "data.train=hanzi.csv", "data.strict=true")
TEXT = tuple(text for text in TINY if not text.startswith(("export", "logger")))
IMAGE = ("task=image_classification", "data=digits", "model=convnet", "device=cpu")
VIT = (*IMAGE[:2], "model=vit", "model.dim=16", "model.depth=1", "model.heads=2", "device=cpu")
TABLE = ("task=tabular_classification", "data=breast_cancer", "device=cpu")
PAIRS = ("task=sentence_embedding", "loss=info_nce", *TEXT)
ADAPTIVE = ("loss=adaptive_softmax", *TEXT)
MASKED = ("task=masked_lm", *TEXT)
WEIGHTED = ("loss.weight=[1,2]", *TEXT)
RGB = ("task.channels=3", "task.size=8")
SAVED = (*IMAGE[:2], "model=pretrained_image", "model.path=vit", "device=cpu")

JOBS: dict[str, tuple[Sequence[str], str, Sequence[str]]] = {
    # The job, the remedy in the message, and the arguments that carry it out.
    "task.vocab_size": (
        (*TEXT, *HANZI, "task.vocab_size=100"),
        "Set task.tokenizer to one .*, or raise task.vocab_size",
        ["task.vocab_size=2000"],
    ),
    "task.tokenizer": (
        (*TEXT, *HANZI, "task.tokenizer=bare.json"),
        "Set task.tokenizer to one that knows these texts\n",
        ["task.tokenizer=null", "task.vocab_size=2000"],
    ),
    "task.max_length": (
        (*TEXT, "task.max_length=4", "data.strict=true"),
        "Raise task.max_length",
        ["task.max_length=32"],
    ),
    "task.evaluate_pairs": (
        (*PAIRS, "task.evaluate_pairs=true"),
        "Use task.evaluate_pairs=false",
        ["task.evaluate_pairs=false"],
    ),
    "task.threshold": ((*PAIRS, "task.threshold=0.5"), "Use task.threshold=null", ["task.threshold=null"]),
    "task.whole_words": (
        (*MASKED, "task.tokenizer=bare.json", "task.whole_words=true"),
        "Use task.whole_words=false",
        ["task.whole_words=false"],
    ),
    "model.dropout": (
        (*PAIRS, "task.supervision=none", "model.dropout=0"),
        "model.dropout: without .* Set it above 0",
        ["model.dropout=0.1"],
    ),
    "task.supervision": (
        (*PAIRS, "task.supervision=none", "model.dropout=0"),
        "or use task.supervision=pairs",
        ["task.supervision=pairs"],
    ),
    "model=decoder": (("task=causal_lm", "model=text_encoder", *TEXT), "Use model=decoder", ["model=decoder"]),
    "model=text_encoder": (("model=decoder", *MASKED), "Use model=text_encoder", ["model=text_encoder"]),
    "a task with tags": (("loss=crf", *TEXT), "Use task=token_classification", ["task=token_classification"]),
    "tags without a scheme": (
        (
            "task=token_classification",
            "data=conll",
            "data.train=nouns.conll",
            "loss=crf",
            "loss.constraints=true",
            *TEXT,
        ),
        r"loss\.constraints: needs tags of .* Set loss\.constraints=false",
        ["loss.constraints=false"],
    ),
    "a loss without sequences": (("loss=crf", *MASKED), "or loss=cross_entropy", ["loss=cross_entropy"]),
    "a loss for classes": (("loss=mse", *TEXT), "Use one of .*cross_entropy", ["loss=cross_entropy"]),
    "a model for texts": (("model=mlp", "device=cpu"), "Use one of .*text_encoder", ["model=text_encoder"]),
    "task.channels of the model": (
        (*SAVED, "task.channels=1", "task.size=8"),
        "Set task.channels=3",
        ["task.channels=3"],
    ),
    "task.size of the model": (
        (*SAVED, "task.channels=3", "task.size=12"),
        r"Set task\.size=\[8,8\]",
        ["task.size=[8,8]"],
    ),
    "task.channels of the mean": ((*IMAGE, "task.mean=[0.5]"), "Set task.channels to 1 or 3", ["task.channels=1"]),
    "task.channels of the deviation": (
        (*IMAGE, "task.std=[0.5,0.5,0.5]"),
        "Set task.channels to 1 or 3",
        ["task.channels=3"],
    ),
    "model.patch": ((*VIT, "model.patch=3"), "Use one of 1, 2, 4, 8", ["model.patch=4"]),
    "a model without features": (
        ("task=sentence_embedding", "loss=info_nce", "model=linear", "device=cpu"),
        "Use another model",
        ["model=text_encoder"],
    ),
    "model.tie_embeddings": (
        ("task=token_classification", "model=decoder", "model.tie_embeddings=true", *TEXT),
        "model.tie_embeddings: .* Set it to false",
        ["model.tie_embeddings=false"],
    ),
    "loss.cutoffs that exceed the classes": (
        (*ADAPTIVE, "loss.cutoffs=[99]"),
        "Use loss.cutoffs=null",
        ["loss.cutoffs=null"],
    ),
    "loss.div_value": ((*ADAPTIVE, "loss.div_value=999"), "Use a smaller value or fewer cutoffs", ["loss.div_value=2"]),
    "loss.weight": ((*WEIGHTED,), "give them by name: {NAME: VALUE}", ["loss.weight={animal: 1, fruit: 2, tool: 1}"]),
    "loss.alpha": (
        ("loss=focal", "loss.alpha=[1,2]", *TEXT),
        "give them by name: {NAME: VALUE}",
        ["loss.alpha={animal: 1, fruit: 2, tool: 1}"],
    ),
    "weights without classes": (("task=regression", "loss=focal", *TEXT), "Use one of .*mse", ["loss=mse"]),
    "loss.ignore_index": ((*TEXT, "loss.ignore_index=1"), "Use a negative number", ["loss.ignore_index=-1"]),
    "loader.tokens of a task": ((*PAIRS, "loader.tokens=64"), "Set loader.tokens=null", ["loader.tokens=null"]),
    "loader.tokens": ((*TEXT, "loader.tokens=8"), "Set loader.tokens=16 or more", ["loader.tokens=16"]),
    "loader.batching": (
        (*TEXT, "loader.tokens=64", "loader.batching=padded"),
        "Set loader.batching=packed",
        ["loader.batching=packed"],
    ),
    "train.accumulate of tokens": (
        (*TEXT, "loader.tokens=64", "train.accumulate=2"),
        "Set train.accumulate=1",
        ["train.accumulate=1"],
    ),
    "train.accumulate of devices": (
        (*TEXT, "devices=2", "train.accumulate=auto"),
        "train.accumulate: .* Set a number",
        ["train.accumulate=2"],
    ),
    "shard": ((*TEXT, "shard=true"), "Set devices=N", ["devices=2"]),
    "devices of a GPU": (
        (*TEXT, "device=cuda:0", "devices=2"),
        "Set device=cuda, or devices=1",
        ["device=cpu", "devices=1"],
    ),
    "run.name": ((*TEXT, "run.name=a/b"), "Set run.dir for a path", ["run.name=null", "run.dir=a/b"]),
    "resume=auto": ((*TEXT, "resume=auto"), "resume: .* Set run.name", ["run.name=mine"]),
    "device=0": ((*TEXT, "device=0"), "Set device=cuda:0 for one GPU", ["device=cpu"]),
    "train.duration": (
        (*TEXT, "train.duration=50%"),
        r"Use optimizer steps \(500 or 500st\)",
        ["train.duration=500st"],
    ),
    "an unknown key": (
        (*TEXT, "optimizer.lrr=1"),
        r"Did you mean optimizer\.lr\?",
        ["optimizer.lr=1e-3", "-optimizer.lrr"],
    ),
    "optimizer=muon": ((*TABLE, "model=linear", "optimizer=muon"), "Use optimizer=adamw", ["optimizer=adamw"]),
    "an interval without a unit": ((*TEXT, "train.eval_every=1h"), "Use optimizer steps", ["train.eval_every=1ep"]),
    "checkpoint.monitor": (
        (*TEXT, "checkpoint.monitor=acuracy"),
        "Did you mean accuracy",
        ["checkpoint.monitor=accuracy"],
    ),
    "an option": ((*TEXT, "optimizer=adamww"), r"Did you mean optimizer=adamw\?", ["optimizer=adamw"]),
    "data.label": ((*TEXT, "data.label=lable"), "Did you mean label", ["data.label=label"]),
    "data.label=null": (
        (*TEXT, "data.label=null"),
        "data.label: .* Leave it out to keep its default",
        ["-data.label=null"],
    ),
    "export.formats": ((*TEXT, "export.formats=[onnx_cache]"), "Use some of .*onnx", ["export.formats=[onnx]"]),
    "prune.dim": ((*TEXT, "prune=ln", "prune.dim=5"), "Use 0 for outputs or 1 for inputs", ["prune.dim=0"]),
    "images that are too small": (
        (*IMAGE[:2], "model=lenet", "device=cpu", "task.size=4"),
        "or use model=convnet",
        ["model=convnet", "task.size=8"],
    ),
    "model.path": ((*SAVED[:2], *SAVED[2:], "model.path=missing", *RGB), "Check the name", ["model.path=vit"]),
    "model.pretrained": (
        (*SAVED, *RGB, "+model.config.hidden_size=32"),
        "set model.pretrained=false for",
        ["model.pretrained=false"],
    ),
    "task.size of images": (
        ("task=image_classification", "data=imagefolder", "data.root=images", "model=convnet", "device=cpu"),
        r"Set it, such as task.size=224",
        ["task.size=24"],
    ),
    "data.separator": ((*TEXT, *TABS), "data.separator", [r"data.separator=\t"]),
    "data.columns": ((*TEXT, "data.text=sentence"), "set data.text and data.label", ["data.text=text"]),
    "model.lora": (
        (*TEXT, "model.lora={rank: 4, targets: [nothing]}"),
        "Known: attention_output, ",
        ["model.lora={rank: 4, targets: all-linear}"],
    ),
    "model.freeze": ((*TEXT, "model.freeze=[blcks.*]"), "Similar names: blocks", ["model.freeze=[blocks.*]"]),
    "optimizer.overrides": (
        (*TEXT, "optimizer.overrides=[{match: layers.0.*, lr: 1}]"),
        "The names are .*blocks.0.attention_norm",
        ["optimizer.overrides=[{match: blocks.0.*, lr: 1}]"],
    ),
    "a value of another type": ((*TEXT, "train.batch_size=many"), "train.batch_size: ", ["train.batch_size=8"]),
    "an interpolation": ((*TEXT, "optimizer.lr=1e-3x"), "optimizer.lr", ["optimizer.lr=1e-3"]),
    "a bracket": ((*TEXT, "model.freeze=[a"), "Close every bracket", ["model.freeze=[head.*]"]),
    "spaces": ((*TEXT, "train.batch_size"), "Write overrides as key=value, without spaces", ["train.batch_size=8"]),
    "data.mix": (
        (*IMAGE, "data.mix={hanzi.csv: 1}"),
        "data.mix: needs a source .* or set data.mix=null",
        ["data.mix=null"],
    ),
    "data.split.stratify": (
        (*TEXT, *HANZI[:2], "data.split.stratify=label", "data.split.group=text"),
        "Set data.split.stratify=null, or",
        ["data.split.stratify=null"],
    ),
    "data.split.group and time": (
        (*TEXT, *HANZI[:2], "data.split.stratify=label", "data.split.group=text", "data.split.time=text"),
        "or data.split.group=null and data.split.time=null",
        ["data.split.group=null", "data.split.time=null"],
    ),
    "model.multi_sample_dropout": (
        (*TEXT, "loss=dice", "model.head_dropout=0.3", "model.multi_sample_dropout=4"),
        "model.multi_sample_dropout: .* Set model.multi_sample_dropout=1",
        ["model.multi_sample_dropout=1"],
    ),
    "model.head_dropout": (
        (*PAIRS, "model.head_dropout=0.3"),
        "Set task.dim=128, or set model.head_dropout=0 model.multi_sample_dropout=1",
        ["task.dim=128", "model.head_dropout=0"],
    ),
    "model.head_dropout of tied embeddings": (
        ("task=causal_lm", *TEXT, "model.head_dropout=0.3"),
        "Set model.tie_embeddings=false, or",
        ["model.tie_embeddings=false"],
    ),
    "loader.sampler_column of corrections": (
        (*TEXT, "loader.sampler=balanced", "loader.sampler_column=label", "data.corrections=fixed.csv"),
        "Leave out loader.sampler_column, so that the corrected labels count",
        ["-loader.sampler_column=null"],
    ),
    "two passes without dropout": (
        (*TEXT, "perturb=r_drop", "model.dropout=0"),
        "or set model.head_dropout=0.1, or use perturb=awp",
        ["model.dropout=0", "model.head_dropout=0.1"],
    ),
    "weights without their sampler": (
        (*TEXT, "loader.weights={animal: 2}"),
        "Set loader.sampler=weighted",
        ["loader.sampler=weighted"],
    ),
    "loader.weights": (
        (*TEXT, "loader.sampler=weighted"),
        "Set loader.weights={<value>:<weight>}",
        ["loader.weights={animal:2}"],
    ),
    "loader.sampler_column": (
        (*TEXT, "loader.sampler_column=label"),
        "Set loader.sampler=balanced or",
        ["loader.sampler=balanced"],
    ),
    "rows without a class": (
        ("task=regression", "loader.sampler=balanced", *TEXT),
        "Set loader.sampler_column=<column>",
        ["loader.sampler_column=label"],
    ),
    "rows without a class but with weights": (
        ("task=regression", "loader.sampler=balanced", *TEXT),
        "or loader.sampler=weighted loader.weights=<column of numbers>",
        ["loader.sampler=weighted", "loader.weights=value"],
    ),
    "a prune key": ((*TEXT, "prune.amount=0.5"), "Add prune=", ["prune=l1", "prune.amount=0.5"]),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the files that the jobs read, and the overrides that name the data of most jobs."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("remedies")
    overrides = write_roles(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **shape)).save_pretrained(folder / "vit")
    write_tokenizer(folder / "bare.json")
    texts = [f"{chr(0x4E00 + n % 90)}{chr(0x5000 + n % 7)},{n % 2}" for n in range(400)]
    (folder / "hanzi.csv").write_text("\n".join(["text,label", *texts]), encoding="utf-8")
    (folder / "tabs.csv").write_text("\n".join(["text\tlabel", *(f"word {n}\t{n % 2}" for n in range(80))]))
    (folder / "nouns.conll").write_text("".join(f"fox{n}\tNOUN\nruns\tVERB\n\n" for n in range(80)))
    label = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").partition("\n")[0])["label"]
    line = f"{folder / 'train.jsonl'},1,{label},{'animal' if label == 'tool' else 'tool'}"
    (folder / "fixed.csv").write_text(f"file,row,label,correction\n{line}\n", encoding="utf-8")
    for number in range(80):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8 + number % 2, 8), number).save(path)
    return folder, overrides


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer that does not split texts into words."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(BPE({name: number for number, name in enumerate(names)}, [], unk_token="[UNK]"))
    tokenizer.add_special_tokens(names[:5])
    tokenizer.save(str(path))


@pytest.mark.parametrize("name", JOBS)
def test_the_remedy_of_a_message_makes_the_job_work(
    name: str, data: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    job, remedy, deed = JOBS[name]
    folder, files = data
    line = ["plan", "trial=false", *(() if any(text.startswith("data=") for text in job) else files), *job]
    with working_in(folder):
        assert main(line) in (2, 6)
        message = capsys.readouterr().err
        assert re.search(remedy, message), message
        replaced = {text.partition("=")[0].removeprefix("-") for text in deed}
        kept = [text for text in line if text.partition("=")[0] not in replaced]
        code = main([*kept, *(text for text in deed if not text.startswith("-"))])
        assert (code, capsys.readouterr().err) == (0, "")


def overrides_in_messages() -> set[str]:
    """Return the overrides that texts of the package tell the user to set or use; `{}` stands for a value."""
    overrides = set()
    for file in Path(trainer.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        parts |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        texts = [constant_text(node) for node in nodes if id(node) not in parts]
        for text in filter(None, texts):
            for named in re.findall(r"\b(?:[Ss]et|[Uu]se|or use|or set) ([a-z_.]+=[^\s]+(?: [a-z_.]+=[^\s]+)*)", text):
                overrides |= {override.rstrip(".,") for override in named.split()}
    return overrides


def constant_text(node: ast.AST) -> str | None:
    """Return the text of a string or an f-string, with `{}` for each value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_every_override_that_a_message_names_is_carried_out() -> None:
    folder = Path(__file__).parent.parent
    tests = "\n".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
    named = overrides_in_messages()
    assert len(named) > 30
    patterns = {override: re.sub(r"\\{\\}|<\w+>?", r"[^\\s\"]+?", re.escape(override)) for override in named}
    # An example of a size, a fault of a GPU, a run whose weights are broken, the place of a run, tasks of a user's own.
    others = {
        "loss.alpha=null",
        "loss.pos_weight=null",
        "task.size=224",
        "deterministic=false",
        "precision=fp32",
        "resume=<run",
    }
    assert [each for each in named - others if not re.search(rf"[\"' ]{patterns[each]}[\"' ,\]]", tests)] == []


@pytest.mark.parametrize("verb", JOB_TYPES)
def test_a_verb_has_the_keys_that_it_names_if_memory_runs_out(verb: str) -> None:
    remedy = MEMORY_REMEDIES.get(verb, "")
    keys = {key.partition("=")[0] for key in re.findall(r"[a-z_]+(?:\.[a-z_]+)+|\b[a-z]+=\w+", remedy)}
    assert bool(keys) == (verb not in WITHOUT_TORCH)
    known = verb_help(verb, [])
    stored = stored_sections(JOB_TYPES[verb])
    own = [key for key in keys if key.partition(".")[0] not in stored]
    assert [key for key in own if not re.search(rf"\b{re.escape(key)}\b", known)] == []
