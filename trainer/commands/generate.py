"""`trainer generate`: texts that a run's language model goes on with."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.writer import writer_of
from trainer.config.jobs import GenerateJob
from trainer.errors import ConfigError, DataError, format_error, raise_if_any
from trainer.predict.stdin import stdin_lines
from trainer.predict.writing import Write, check_output, writing
from trainer.report.console import open_console, table

if TYPE_CHECKING:
    from trainer.decode.generation import EndReason, ExplainedStep, GeneratedText, TextGenerator

_SHOWN = 40  # characters of the text so far, in a row of the table
_LONGEST_NAME = 255  # of a file, in characters


def run(job: GenerateJob, config: dict[str, Any]) -> None:
    """Goes on with each prompt and prints the texts, or writes them with what is known of them.

    Prompts are gone on with one by one, each from the same seed: a text depends on nothing but its own prompt.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.

    Raises:
        ConfigError: The run has no causal language model, or the prompt cannot be gone on from.
        DataError: Lines of standard input could not be gone on from; the others were.
    """
    output = None if job.output in (None, "-") else Path(str(job.output)).expanduser()
    _check_texts(job.prompt, output)
    writer = writer_of(job)
    with nullcontext(None) if job.output is None else writing(output) as write:
        count, num_faults = _write_all(job, writer, write)
    if num_faults:
        raise DataError(f"{num_faults} of {count} lines could not be gone on from.")


def _check_texts(prompt: str | None, output: Path | None) -> None:
    """Refuses, with all that is wrong, a prompt that no model can go on from and a file that cannot be written."""
    faults = []
    if prompt == "":
        faults.append(format_error("prompt", "has no token to go on from", value=prompt))
    elif prompt is not None and any("\ud800" <= sign <= "\udfff" for sign in prompt):
        # What is not UTF-8 on a command line becomes these.
        faults.append(format_error("prompt", "is not UTF-8", value=prompt))
    try:
        if output is not None:
            check_output(output)
    except ConfigError as error:
        faults += error.messages
    raise_if_any(*faults)


def _write_all(job: GenerateJob, writer: TextGenerator, write: Write | None) -> tuple[int, int]:
    """How many prompts there were, and how many of them could not be gone on from."""
    import torch

    from trainer.builders.instantiate import instantiate
    from trainer.decode.generation import PromptError
    from trainer.precision import Precision

    decode = instantiate("decode", job.decode)
    number = num_faults = 0
    with torch.inference_mode(), Precision(job.precision, writer.device).autocast():
        for number, text in enumerate(_prompts(job.prompt), 1):
            try:
                prompt = writer.encode_prompt(_readable(text))
            except (DataError, PromptError) as error:
                if job.prompt not in (None, "-"):
                    raise ConfigError(format_error("prompt", str(error), value=text)) from error
                num_faults += 1
                _write_fault(write, number, text, error)
                continue
            assert isinstance(text, str), "it was read"
            if unknown := writer.count_unknown_tokens(prompt):
                problem = f"{unknown} of its {prompt.length} tokens are unknown to the model's vocabulary"
                _tell(f"prompt {number}: {problem}")
            ended = set()
            for continuation in decode(writer.open_session(), prompt):
                written = writer.complete(text, prompt, continuation, job.decode.get("stop", ()))
                steps = [] if job.explain is None else writer.explain(prompt, continuation, job.explain)
                _write(write, text, written, steps)
                ended.add(written.ended)
            _tell_ends(number, ended, writer.max_length)
    return number, num_faults


def _prompts(given: str | None) -> Iterator[str | DataError]:
    """The prompts; in the place of a line that is not UTF-8 what is wrong with it."""
    if given not in (None, "-"):
        if Path(str(given)[:_LONGEST_NAME]).is_file():
            _tell(f"prompt: a text, not the lines of the file {given}; these are read with prompt=- < {given}")
        yield str(given)
        return
    if sys.stdin.isatty():
        _tell("prompts are read from standard input, one a line")
    for line in stdin_lines():
        if line is not None:
            yield line if isinstance(line, DataError) else line.rstrip("\r")


def _readable(text: str | DataError) -> str:
    if isinstance(text, DataError):
        raise text
    return text


def _tell(note: str) -> None:
    print(f"note: {note}", file=sys.stderr, flush=True)


def _tell_ends(number: int, ended: Collection[EndReason], max_length: int) -> None:
    """Why texts of a prompt ended before they were to."""
    if "context" in ended:
        limit = f"{max_length} tokens, the most that the model was trained to read (task.max_length)"
        _tell(f"prompt {number}: its text ended at {limit}")
    if "exhausted" in ended:
        _tell(f"prompt {number}: its text ended where decode.no_repeat_ngram leaves no token to go on with")


def _write_fault(write: Write | None, number: int, text: str | DataError, error: Exception) -> None:
    """Tells what is wrong with a line; where answers are data, it stands in the answer's place."""
    fault = str(error) if isinstance(text, DataError) else format_error(f"line {number}", str(error), value=text)
    print(fault, file=sys.stderr, flush=True)
    if write is not None:
        write({"prompt": None if isinstance(text, DataError) else text, "error": fault})
        sys.stdout.flush()


def _write(write: Write | None, prompt: str, written: GeneratedText, steps: Sequence[ExplainedStep]) -> None:
    if write is None:
        if steps:
            _show_steps(steps)
        print(written.text, flush=True)
        return
    line = {"prompt": prompt, **asdict(written)} | ({"steps": [asdict(step) for step in steps]} if steps else {})
    if written.score is None:
        del line["score"]
    write(line)
    sys.stdout.flush()


def _show_steps(steps: Sequence[ExplainedStep]) -> None:
    """The text so far and the best next tokens, a row a step; what was chosen where that was another one."""
    columns = ["input", *(f"choice {place}" for place in range(1, len(steps[0].choices) + 1))]
    others = any(step.chosen != step.choices[0] for step in steps)
    rows = []
    for step in steps:
        so_far = " ".join(step.input.split())
        choices = [*step.choices, step.chosen] if others else step.choices
        shown = [f"{choice.token!r} {choice.probability:.2%}" for choice in choices]
        rows.append([so_far if len(so_far) <= _SHOWN else f"…{so_far[-_SHOWN:]}", *shown])
    table(open_console("auto"), "next tokens", [*columns, "chosen"] if others else columns, rows)
