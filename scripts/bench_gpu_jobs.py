"""The rows of `bench_gpu.py`: jobs on synthetic data, and what their variants change."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Texts:
    """The sizes of a job with texts.

    Attributes:
        words: Entries of the vocabulary.
        length: Tokens of the longest text; the others of an encoder are shorter.
        count: Number of texts.
        batch: Texts of a step.
        tokens: Tokens of a micro-batch with `loader.tokens`.
    """

    words: int
    length: int
    count: int
    batch: int
    tokens: int


@dataclass(frozen=True)
class Size:
    """The sizes of models, data and measurements.

    Attributes:
        layers, width, heads: Of the transformers.
        classes, masked, decoder: The texts of each job.
        images: Number of images; a step has a quarter of them, at most 4096.
        workers: Processes that prepare batches.
        steps, rounds: Steps of a round, and rounds; results are medians of rounds. Another round comes before them.
    """

    layers: int
    width: int
    heads: int
    classes: Texts
    masked: Texts
    decoder: Texts
    images: int
    workers: int
    steps: int
    rounds: int

    def texts(self, job: str) -> Texts | None:
        """Return the texts of a job; None if it has none."""
        return {"classes": self.classes, "small": self.classes, "masked": self.masked, "decoder": self.decoder}.get(job)


SIZES = {
    "full": Size(  # BERT-base and GPT-2
        layers=12,
        width=768,
        heads=12,
        classes=Texts(words=30522, length=128, count=16384, batch=512, tokens=4096),
        masked=Texts(words=30522, length=512, count=4096, batch=128, tokens=8192),
        decoder=Texts(words=50257, length=1024, count=1024, batch=64, tokens=8192),
        images=20480,
        workers=8,
        steps=10,
        rounds=3,
    ),
    "tiny": Size(
        layers=1,
        width=16,
        heads=2,
        classes=Texts(words=300, length=16, count=80, batch=8, tokens=32),
        masked=Texts(words=300, length=16, count=80, batch=8, tokens=32),
        decoder=Texts(words=300, length=32, count=80, batch=8, tokens=64),
        images=80,
        workers=0,
        steps=2,
        rounds=1,
    ),
}


@dataclass(frozen=True)
class Row:
    """A figure: a job in several variants.

    Attributes:
        job: The name of the job in `jobs_of`.
        variants: What each variant changes, by its name; `{tokens}` is `Texts.tokens` of the job, and
            `{graphs}` is `graphs` on CUDA, else `true`.
        seconds: Time limit.
        memory: Bytes of the device that may be used; None is all.
    """

    job: str
    variants: Mapping[str, Sequence[str]]
    seconds: int = 80
    memory: float | None = None


def values_of(key: str, *values: str) -> dict[str, list[str]]:
    """Return a variant for each value of a key."""
    return {value: [f"{key}={value}"] for value in values}


FIXED_SHAPE = "loader.tokens={tokens}"


ROWS: dict[str, Row] = {
    "gpt2": Row("decoder", {"compiled": ["compile=true"], "not compiled": []}, 120),
    "mlm": Row(
        "masked",
        {"compiled": ["compile=true", FIXED_SHAPE], "packed": [], "padded": ["loader.batching=padded"]},
        120,
    ),
    "classification": Row("classes", {"compiled": ["compile=true", FIXED_SHAPE], "packed": []}, 120),
    "attention": Row("masked", {"variable length": [], "mask": ["model.attention=sdpa"]}),
    "compile": Row(
        "small",
        {"false": [FIXED_SHAPE], "true": [FIXED_SHAPE, "compile=true"], "graphs": [FIXED_SHAPE, "compile={graphs}"]},
    ),
    "tokens": Row("classes", {"fixed shape": [FIXED_SHAPE], "one micro-batch": []}),
    "deterministic": Row("classes", values_of("deterministic", "true", "false")),
    "precision": Row("classes", values_of("precision", "fp32", "tf32", "bf16", "fp16")),
    "fused_head": Row("decoder", values_of("train.fused_head", "true", "false")),
    "gradient_checkpointing": Row("decoder", values_of("model.gradient_checkpointing", "none", "selective", "blocks")),
    "accumulate": Row("decoder", values_of("train.accumulate", "auto", "8"), memory=12e9),
    "images": Row("images", values_of("model.channels_last", "false", "true")),
}


def write_inputs(folder: Path, size: Size) -> None:
    """Write texts, images, tokenizers and the configuration of a BERT."""
    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    draw = random.Random(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for name, texts in (("encoder", size.classes), ("decoder", size.decoder)):
        tokens = [*special, *(f"w{number}" for number in range(len(special), texts.words))]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.add_special_tokens(special)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        (folder / name).mkdir()
        tokenizer.save(str(folder / name / "tokenizer.json"))
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": size.classes.words, "pad_token_id": 0}
    config |= {"num_hidden_layers": size.layers, "hidden_size": size.width, "num_attention_heads": size.heads}
    config |= {"intermediate_size": 4 * size.width, "max_position_embeddings": size.masked.length}
    config |= {"attention_probs_dropout_prob": 0.0}  # the variable-length kernel has none
    (folder / "encoder" / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def lines(texts: Texts, shortest: int, longest: int) -> list[str]:
        lengths = [draw.randint(shortest, longest) for _ in range(texts.count)]
        return [" ".join(f"w{draw.randrange(5, texts.words)}" for _ in range(length)) for length in lengths]

    classes = [f"{text},c{number % 4}" for number, text in enumerate(lines(size.classes, 4, size.classes.length - 2))]
    (folder / "classes.csv").write_text("\n".join(["text,label", *classes]), encoding="utf-8")
    # An encoder adds two tokens to a text, a decoder one.
    masked = lines(size.masked, size.masked.length // 8, size.masked.length - 2)
    decoder = lines(size.decoder, size.decoder.length - 1, size.decoder.length - 1)
    (folder / "masked.txt").write_text("\n".join(masked), encoding="utf-8")
    (folder / "decoder.txt").write_text("\n".join(decoder), encoding="utf-8")
    numbers = np.random.default_rng(0)
    pixels, labels = numbers.integers(0, 256, (size.images, 28, 28)), np.arange(size.images) % 10
    for name, values in (("train-images-idx3-ubyte", pixels), ("train-labels-idx1-ubyte", labels)):
        head = bytes([0, 0, 8, values.ndim]) + b"".join(count.to_bytes(4, "big") for count in values.shape)
        (folder / name).write_bytes(head + values.astype(np.uint8).tobytes())


def jobs_of(folder: Path, size: Size, device: str) -> dict[str, list[str]]:
    """Return the command line of each job, without `trainer train`."""
    common = [
        f"device={device}",
        "precision=bf16",
        "ema.decay=null",
        "train.duration=100000",
        f"data.cache_dir={folder}",
    ]
    encoder = ["model=pretrained", f"model.path={folder}/encoder", "model.pretrained=false"]
    classes, masked, decoder = (
        [f"task.max_length={texts.length}", f"train.batch_size={texts.batch}"]
        for texts in (size.classes, size.masked, size.decoder)
    )
    return {
        "classes": [*common, "data=files", f"data.train={folder}/classes.csv", *encoder, *classes],
        "small": [
            *(*common, "data=files", f"data.train={folder}/classes.csv", "model=text_encoder", *classes),
            f"task.tokenizer={folder}/encoder",
        ],
        "masked": [*common, "task=masked_lm", "data=lines", f"data.train={folder}/masked.txt", *encoder, *masked],
        "decoder": [
            *(*common, "task=causal_lm", "data=lines", f"data.train={folder}/decoder.txt", "model=decoder", *decoder),
            *(f"task.tokenizer={folder}/decoder", f"model.dim={size.width}", f"model.depth={size.layers}"),
            *(f"model.heads={size.heads}", f"model.hidden={4 * size.width}"),
        ],
        "images": [
            *(*common, "task=image_classification", "data=idx", f"data.train.images={folder}/train-images-idx3-ubyte"),
            *(f"data.train.labels={folder}/train-labels-idx1-ubyte", "model=convnet"),
            f"train.batch_size={min(4096, size.images // 4)}",
        ],
    }
