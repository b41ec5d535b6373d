"""`trainer generate` on one small run: texts, output files and errors."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.support.documents import edit_manifest
from tests.support.hostile_documents import graph_of, seal_again
from tests.support.jobs import TINY, train, working_in, write_data, write_roles
from tests.support.pretrained_folders import save
from tests.support.processes import run_without_torch
from trainer.cli import main
from trainer.decode.onnx_session import SCORES
from trainer.layout import ONNX_CACHE

PROMPT = "apple banana (pear), axe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the run of a language model in `lm` and of a classifier in `classes`."""
    made = tmp_path_factory.mktemp("generate")
    with working_in(made):
        learnt = ["train.duration=40", "optimizer.lr=0.03", "scheduler=constant", "ema.decay=null"]
        assert train(made / "lm", *write_roles(made), "task=causal_lm", *learnt) == 0
        assert train(made / "classes", *write_data(made), "train.duration=2") == 0
        yield made


@pytest.fixture(scope="module")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run of a language model with three words in `lm`."""
    made = tmp_path_factory.mktemp("three")
    texts = [json.dumps({"text": " ".join(words)}) for words in product("abc", repeat=3)]
    (made / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
    with working_in(made):
        learnt = ["data=files", f"data.train={made / 'texts.jsonl'}", "task=causal_lm", "train.duration=1"]
        assert train(made / "lm", *learnt) == 0
    return made


def generate(folder: Path, *overrides: str) -> int:
    return main(["generate", f"run={folder / 'lm'}", "device=cpu", *overrides])


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Return a function that sets the contents of standard input."""
    with ExitStack() as files:

        def hold(content: bytes) -> None:
            reading, writing = os.pipe()
            os.write(writing, content)
            os.close(writing)
            monkeypatch.setattr(sys, "stdin", files.enter_context(os.fdopen(reading)))

        yield hold


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_prompt_is_continued(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(folder, f"prompt={PROMPT}", "decode.max_new_tokens=4") == 0
    shown, note = capsys.readouterr()
    assert generate(folder, f"prompt={PROMPT}", "decode.max_new_tokens=4", "output=-") == 0
    (line,) = lines(capsys.readouterr().out)

    assert shown.rstrip("\n") == line["text"]
    assert note == "note: prompt 1: 3 of its 7 tokens are not in the vocabulary\n"
    assert line["prompt"] == PROMPT
    assert line["text"] == PROMPT + line["completion"]
    assert {*line} == {"prompt", "text", "completion", "tokens", "ended"}


@pytest.mark.parametrize("way", ["greedy", "beam_sample"])
def test_several_prompts_give_the_same_as_each_alone(
    way: str, folder: Path, capsys: pytest.CaptureFixture[str], stdin: Callable[[bytes], None]
) -> None:
    prompts, more = ["apple", "cat dog horse"], [f"decode={way}", "decode.max_new_tokens=5", "output=-"]
    stdin("\n".join(prompts).encode() + b"\n")
    assert generate(folder, *more) == 0
    together = capsys.readouterr().out
    alone = []
    for prompt in prompts:
        assert generate(folder, *more, f"prompt={prompt}") == 0
        alone.append(capsys.readouterr().out)

    assert together == "".join(alone)
    assert [line["prompt"] for line in lines(together)] == prompts
    assert all(("score" in line) == way.startswith("beam") for line in lines(together))


def test_several_continuations_are_written_to_a_file(folder: Path) -> None:
    drawn = ["decode=sample", "decode.num_return=3", "decode.temperature=3", "decode.max_new_tokens=6"]
    results = []
    for seed in (0, 0, 1):
        path = folder / "texts.jsonl"
        assert generate(folder, "prompt=apple", *drawn, f"decode.seed={seed}", f"output={path}", "force=true") == 0
        results.append(lines(path.read_text(encoding="utf-8")))

    assert len({line["text"] for line in results[0]}) == 3
    assert results[0] == results[1] != results[2]


def test_steps_are_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(folder, "prompt=apple pear", "explain=5", "decode.max_new_tokens=3", "output=-") == 0
    (line,) = lines(capsys.readouterr().out)
    assert generate(folder, "prompt=apple pear", "explain=5", "decode.max_new_tokens=3") == 0
    title, head, *rows, text = capsys.readouterr().out.splitlines()

    assert title == "next tokens"
    assert [name.strip() for name in head.split("choice")] == ["input", "1", "2", "3", "4", "5"]
    assert len(rows) == len(line["steps"]) == line["tokens"]
    assert text == line["text"]
    for row, step in zip(rows, line["steps"], strict=True):
        assert step["input"] in row
        assert step["chosen"] == step["choices"][0]
        likely = [choice["probability"] for choice in step["choices"]]
        assert likely == sorted(likely, reverse=True)
        assert all(f"{choice['token']!r} {choice['probability']:.2%}" in row for choice in step["choices"])


def test_sampled_tokens_are_shown_next_to_the_most_likely(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["decode=sample", "decode.temperature=9", "decode.top_k=0", "decode.max_new_tokens=5"]
    assert generate(folder, "prompt=apple", "explain=2", *drawn) == 0

    assert "chosen" in capsys.readouterr().out.splitlines()[1]


def test_stop_string_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["prompt=apple", "output=-", "decode.max_new_tokens=8", "decode.min_new_tokens=8"]
    assert generate(folder, *more) == 0
    (whole,) = lines(capsys.readouterr().out)
    stop = whole["completion"].split()[1]
    assert generate(folder, *more, f"decode.stop=['{stop}']") == 0
    (cut,) = lines(capsys.readouterr().out)

    assert cut["ended"] == "stop"
    assert stop not in cut["completion"]
    assert whole["completion"].startswith(cut["completion"])


def test_text_ends_at_the_maximum_length_of_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["decode.max_new_tokens=99", "decode.min_new_tokens=99", "output=-"]
    assert generate(folder, "prompt=apple pear", "decode=beam", "decode.num_return=2", *more) == 0
    captured = capsys.readouterr()

    assert [(line["ended"], line["tokens"]) for line in lines(captured.out)] == [("context", 14)] * 2
    assert captured.err.startswith("note: prompt 1: its text ended at 16 tokens")
    assert captured.err.count("\n") == 1


def test_text_ends_if_no_token_is_possible(small_vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["decode=sample", "decode.no_repeat_ngram=1", "decode.min_new_tokens=9", "output=-"]
    assert generate(small_vocabulary, "prompt=b c", *more) == 0
    captured = capsys.readouterr()
    (line,) = lines(captured.out)

    assert line["ended"] == "exhausted"
    assert line["text"] == "b c a"
    assert (
        captured.err
        == "note: prompt 1: its text ended because decode.no_repeat_ngram leaves no token to continue with\n"
    )


def test_file_name_as_prompt_is_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "train.jsonl"
    assert generate(folder, f"prompt={path}", "decode.max_new_tokens=1") == 2
    assert (
        f"note: prompt: used as a text. To continue the lines of the file {path}: prompt=- < {path}"
        in capsys.readouterr().err
    )


def test_reading_from_a_terminal_prints_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, b"apple\n\x04")
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert generate(folder, "decode.max_new_tokens=1") == 0
    os.close(keyboard)
    captured = capsys.readouterr()

    assert captured.out.startswith("apple ")
    assert captured.err == "note: reading prompts from standard input, one per line\n"


def test_prompt_that_cannot_be_continued_does_not_stop_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str], stdin: Callable[[bytes], None]
) -> None:
    prompts = ["apple", "", "pear " * 20, "cat"]
    path = folder / "broken.csv"
    content = "\n".join(prompts).encode() + b"\nax\xffe\n"
    stdin(content)
    assert generate(folder, "output=-", "prompt=-") == 6
    captured = capsys.readouterr()
    stdin(content)
    assert generate(folder, f"output={path}", "prompt=-") == 6

    texts = lines(captured.out)
    assert [line["prompt"] for line in texts] == [*prompts, None]
    first, second, third, last = (line for line in captured.err.splitlines() if not line.startswith("note"))
    assert [line.get("error") for line in texts] == [None, first, second, None, third]
    assert first == "line 2: is empty after tokenization, got ''."
    assert second.startswith("line 3: has 20 tokens, but the model reads at most 16,")
    assert third.startswith("standard input, line 5: byte 0xff at offset 114 of the file is not UTF-8.")
    assert last == "3 of 5 prompts could not be continued."
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == ["", first, second, "", third]


def test_error_leaves_the_output_file_unchanged(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("precious\n", encoding="utf-8")

    assert generate(folder, "prompt=", f"output={path}") == 2
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text(encoding="utf-8") == "precious\n"


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["prompt=' '"], 2, "prompt: is empty after tokenization, got ' '."),
        (["prompt=a\udcffb"], 2, "prompt: is not UTF-8, got 'a\\udcffb'."),
        (
            ["prompt=apple", "decode=sample", f"decode.seed={1 << 64}"],
            2,
            "decode.seed: must be at least 0 and less than 2",
        ),
        (["run=classes", "prompt=apple"], 2, "run: contains no causal language model"),
        (["run=nowhere", "prompt=apple"], 3, "run: "),
        (["prompt=apple", "checkpoint=step-7"], 3, "step-00000007: no such checkpoint"),
        (["prompt=apple", "backend=onnx"], 3, "export.formats=[onnx_cache]"),
        (["prompt=apple", "output=no/such/texts.jsonl"], 2, "output: its folder does not exist"),
        (["prompt=apple", "output=texts.doc"], 2, "output: unknown file format"),
    ],
)
def test_errors(
    overrides: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(folder, *overrides) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_errors_are_reported_before_torch_is_loaded(folder: Path) -> None:
    cases = [
        ("classes", ["prompt=x"], 2, "contains no causal language model"),
        ("lm", ["prompt=x", "backend=onnx"], 3, "backend: there is no exported decoder"),
        ("lm", ["prompt=", "output=texts.doc"], 2, "prompt: must not be empty, got ''.\noutput: unknown file"),
    ]
    codes, errors = run_without_torch([["generate", f"run={folder / run}", *more] for run, more, *_ in cases])
    assert codes == [code for *_, code, _ in cases]
    assert [message for *_, message in cases if message not in errors] == []


def test_generate_does_not_need_the_data(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        files = write_roles(tmp_path)
        assert train(tmp_path / "run", *files, "task=causal_lm", "train.duration=2") == 0
        for path in tmp_path.glob("*.jsonl"):
            path.unlink()
        assert main(["generate", f"run={tmp_path / 'run'}", "device=cpu", "prompt=apple"]) == 0
    assert capsys.readouterr().out.startswith("apple")


def test_loss_with_parameters_and_adapters_are_supported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with working_in(folder):
        for number, changes in enumerate(
            (["loss=adaptive_softmax", "model.tie_embeddings=false"], ["model.lora={rank:2}"])
        ):
            run = tmp_path / str(number)
            assert (
                main(
                    [
                        "train",
                        *TINY,
                        f"run.dir={run}",
                        *write_roles(folder),
                        "task=causal_lm",
                        "train.duration=2",
                        *changes,
                    ]
                )
                == 0
            )
            capsys.readouterr()
            assert main(["generate", f"run={run}", "device=cpu", "prompt=apple pear", "precision=bf16"]) == 0
            assert capsys.readouterr().out.startswith("apple pear")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """Return the export folder of the language model."""
    assert main(["export", f"run={folder / 'lm'}", "export.formats=[onnx_cache]"]) == 0
    return folder / "lm" / "export"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["greedy", "beam", "sample", "beam_sample"])
def test_exported_decoder_generates_the_same_texts(
    way: str, exported: Path, folder: Path, capsys: pytest.CaptureFixture[str], stdin: Callable[[bytes], None]
) -> None:
    results = []
    for backend in ("torch", "onnx"):
        stdin(b"apple\ncat dog horse fox\npear plum\n")
        more = [f"decode={way}", f"backend={backend}", "explain=3", "decode.repetition_penalty=1.2", "output=-"]
        assert generate(folder, *more) == 0
        results.append(lines(capsys.readouterr().out))

    assert [line["text"] for line in results[0]] == [line["text"] for line in results[1]]
    for ours, theirs in zip(*results, strict=True):
        for one, other in zip(ours["steps"], theirs["steps"], strict=True):
            assert one["chosen"]["probability"] == pytest.approx(other["chosen"]["probability"], abs=1e-5)


@pytest.mark.slow
def test_artifact_folder_generates_without_trainer(
    exported: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["apple", "cat dog horse", "pear plum, axe", "Ω"]
    command = [sys.executable, "-I", str(exported / "generate.py")]
    greedily = subprocess.run([*command, *prompts], capture_output=True, text=True, check=True).stdout
    texts = []
    for prompt in prompts:
        assert generate(folder, f"prompt={prompt}", "output=-") == 0
        texts += lines(capsys.readouterr().out)
    drawn = [
        subprocess.run(
            [*command, "--temperature", "3", *more, "--limit", "6"], capture_output=True, text=True, input="apple\n\n"
        )
        for more in ([], [], ["--seed", "1"], ["--top-k", "1"])
    ]

    assert [(line["text"], line["ended"]) for line in lines(greedily)] == [
        (each["text"], each["ended"]) for each in texts
    ]
    assert drawn[0].stdout == drawn[1].stdout != drawn[2].stdout
    assert "has 0 tokens" in lines(drawn[0].stdout)[1]["error"]
    assert texts[0]["text"].startswith(lines(drawn[3].stdout)[0]["text"])
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 0
    assert subprocess.run([*command, "--top-p", "0"], capture_output=True).returncode == 2
    assert "generate.py" in (exported / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_artifact_folder_is_sufficient(
    exported: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "artifacts"
    shutil.copytree(exported, alone)
    more = ["prompt=apple cat", "decode=beam", "explain=1", "output=-"]
    results = []
    for run in (folder / "lm", alone):
        assert main(["generate", f"run={run}", *more]) == 0
        results += lines(capsys.readouterr().out)
    assert (results[0]["text"], results[0]["ended"]) == (results[1]["text"], results[1]["ended"])

    assert main(["generate", f"run={alone}", *more, "precision=bf16", "checkpoint=last"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "checkpoint: applies only to a run, not to an artifact, got 'last'. Leave it out.",
        "precision: applies only to a run, not to an artifact, got 'bf16'. Leave it out.",
    ]
    assert main(["generate", f"run={alone}", *more, "backend=torch"]) == 3
    assert "run: " in capsys.readouterr().err
    (alone / ONNX_CACHE).write_bytes(graph_of(None, 3))
    seal_again(alone / "manifest.json")
    assert main(["generate", f"run={alone}", *more]) == 3
    assert f"{alone / ONNX_CACHE}: cannot compute answers (" in capsys.readouterr().err
    (alone / "tokenizer.json").write_text("{", encoding="utf-8")
    seal_again(alone / "manifest.json")
    assert main(["generate", f"run={alone}", *more]) == 3
    assert f"{alone}: cannot be used (Exception: " in capsys.readouterr().err


@pytest.mark.slow
def test_folder_whose_scores_are_nan_gives_no_text(exported: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(exported, tmp_path / "artifacts")
    model = onnx.load(alone / ONNX_CACHE)
    (node,) = (node for node in model.graph.node if SCORES in node.output)
    node.output[list(node.output).index(SCORES)] = "finite"
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Mul", ["finite", "nan"], [SCORES]))
    onnx.save(model, alone / ONNX_CACHE)
    command = [sys.executable, "-I", str(alone / "generate.py")]
    done = subprocess.run([*command, "apple", "pear"], capture_output=True, text=True, check=True)
    assert lines(done.stdout) == [
        {"prompt": prompt, "error": "the output of the model is NaN"} for prompt in ("apple", "pear")
    ]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "FAILED: the tokens differ from the golden tokens\n",
        "",
    )


@pytest.mark.slow
def test_self_check_of_the_folder_detects_other_tokens(exported: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["artifacts"]["onnx_cache"]["golden"]["tokens"][-1] += 1

    edit_manifest(exported, change)
    done = subprocess.run([sys.executable, "-I", str(exported / "generate.py"), "--check"], capture_output=True)

    assert done.returncode == 1


@pytest.mark.slow
def test_pretrained_model_generates_as_transformers_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Compare a fine-tuned GPT-2 with transformers, which loads the weights of the run's checkpoint."""
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    path = save("gpt2", tmp_path / "gpt2")
    with working_in(tmp_path):
        options = ["task=causal_lm", "model=pretrained", f"model.path={path}", "train.duration=2", "ema.decay=null"]
        plain = [word for word in TINY if not word.startswith(("model.", "task.vocab_size"))]
        assert main(["train", *plain, f"run.dir={tmp_path / 'run'}", *write_roles(tmp_path), *options]) == 0
        capsys.readouterr()
        more = ["prompt=a few words", "decode=beam", "decode.num_beams=3", "decode.max_new_tokens=7", "output=-"]
        assert main(["generate", f"run={tmp_path / 'run'}", "device=cpu", *more]) == 0
    (line,) = lines(capsys.readouterr().out)
    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    weights = load_file(next((tmp_path / "run" / "checkpoints").glob("step-*2/model.safetensors")))
    reference.transformer.load_state_dict({name[5:]: value for name, value in weights.items() if name[:5] == "base."})
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("a few words", add_special_tokens=False).ids])
    end = tokenizer.token_to_id("[SEP]")
    with torch.no_grad():
        (expected,) = reference.generate(ids, num_beams=3, max_new_tokens=7, eos_token_id=end, pad_token_id=end)

    assert line["text"] == tokenizer.decode(expected.tolist())
