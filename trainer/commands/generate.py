"""`trainer generate`: continue prompts with the language model of a run or of an artifact folder."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.run_folders import find_run_folder, run_argument, select_checkpoint
from trainer.config.jobs import GenerateJob
from trainer.config.signatures import attribute
from trainer.config.stored import exported_config, load_stored_config
from trainer.data.line_reader import first_line_of
from trainer.display import counted, escape_controls, print_lines
from trainer.documents import UNSEALED, is_sealed, read_export_manifest
from trainer.errors import CheckpointError, ConfigError, DataError, format_error, raise_if_any
from trainer.layout import EXPORT, ONNX_CACHE, TOKENIZER, Document, expand_home
from trainer.predict.files import Write, check_output, open_output
from trainer.predict.input_rows import read_stdin_lines
from trainer.progress import phase
from trainer.report.console import open_console, print_table
from trainer.report.screen import phases_shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from trainer.decode.generation import EndReason, ExplainedStep, GeneratedText, TextGenerator

_SHOWN_CHARACTERS = 40
"""Length of the text so far in a row of the table."""

_MAX_NAME_LENGTH = 255
"""Length of a file name in characters."""

_DEFAULTS = {"checkpoint": ("best",), "weights": ("auto",), "precision": ("fp32",), "device": ("auto", "cpu")}
"""Keys that an artifact folder does not support, and the values that are accepted for it."""


def run(job: GenerateJob, config: Document) -> None:
    """Continue each prompt and print the texts, or write them with details.

    Prompts are continued one by one, each from the same seed, so a text depends only on its own prompt.

    Raises:
        ConfigError: The run has no causal language model, or the prompt cannot be continued.
        DataError: Lines of standard input could not be continued; the others were.
    """
    output = None if job.output in (None, "-") else Path(expand_home(str(job.output)))
    _check_prompt_and_output(job.prompt, output, force=job.force)
    with phases_shown(open_console("auto")), phase("loading the model"):
        generator = load_generator(job)
    with nullcontext(None) if job.output is None else open_output(output) as write:
        count, num_errors = _continue_prompts(job, generator, write)
    if num_errors:
        raise DataError(f"{counted(num_errors, 'prompt', of=count)} could not be continued.")


def load_generator(job: GenerateJob) -> TextGenerator:
    """Load the model that `run` and `backend` name; their errors are reported before anything heavy is loaded.

    Raises:
        ConfigError: It is no causal language model, or it does not support keys of the job.
        CheckpointError: It cannot be used.
    """
    artifacts = None if job.backend == "torch" else _find_artifacts(job)
    return _load_from_run(job) if artifacts is None else _load_from_artifacts(job, artifacts)


def _check_prompt_and_output(prompt: str | None, output: Path | None, *, force: bool) -> None:
    """Refuse a prompt that no model can continue and a file that cannot be written, together."""
    problems = []
    if prompt == "":
        problems.append(format_error("prompt", "must not be empty", value=prompt))
    try:
        if output is not None:
            check_output(output, force=force)
    except ConfigError as error:
        problems += error.messages
    raise_if_any(*problems)


def _find_artifacts(job: GenerateJob) -> Path | None:
    """Return the artifact folder to use in place of the run's model; None to use the model."""
    if job.run is not None and exported_config(job.run) is not None:
        return Path(job.run)
    if job.backend is None:
        return None
    folder = find_run_folder(job.run)
    _check_language_model(folder)
    return folder / EXPORT


def _load_from_artifacts(job: GenerateJob, folder: Path) -> TextGenerator:
    """Load an exported decoder; needs nothing but the artifact folder."""
    manifest = read_export_manifest(folder)
    try:
        graph, end_id = folder / ONNX_CACHE, (manifest or {})["artifacts"]["onnx_cache"]["end_id"]
        _, max_length = (manifest or {})["axes"]["sequence"]
    except KeyError as error:
        remedy = f"Write it: trainer export {run_argument('run', folder.parent)} export.formats=[onnx_cache]"
        problem = "there is no exported decoder"
        raise CheckpointError(format_error("backend", problem, remedy, value=str(folder / ONNX_CACHE))) from error
    assert manifest is not None
    if not is_sealed(manifest):
        print_lines(f"note: {folder}: {UNSEALED}.")
    unsupported = [key for key, values in _DEFAULTS.items() if getattr(job, key) not in values]
    problem, remedy = "applies only to a run, not to an artifact", "Leave it out"
    raise_if_any(*(format_error(key, problem, remedy, value=getattr(job, key)) for key in unsupported))
    import torch
    from tokenizers import Tokenizer

    from trainer.decode.generation import TextGenerator
    from trainer.decode.onnx_session import OnnxSession, start_session
    from trainer.export.folder import blaming_artifact, require_intact

    require_intact(graph, [TOKENIZER])
    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        session = start_session(graph)
    except Exception as error:  # many types: the folder may come from anywhere
        problem = f"cannot be used ({type(error).__name__}: {first_line_of(error)})"
        raise CheckpointError(format_error(str(folder), problem, "Copy the artifact folder again")) from error
    return TextGenerator(
        lambda: OnnxSession(session),
        _without_limits(tokenizer),
        end_id,
        max_length,
        torch.device("cpu"),
        partial(blaming_artifact, graph),
    )


def _load_from_run(job: GenerateJob) -> TextGenerator:
    folder = find_run_folder(job.run)
    _check_language_model(folder)
    from tokenizers import Tokenizer

    from trainer.builders.checkpointed import load_checkpointed_model
    from trainer.decode.generation import TextGenerator
    from trainer.decode.kv_cache import open_session
    from trainer.protocols import LanguageModelTask

    checkpointed = load_checkpointed_model(
        folder,
        job.trust,
        checkpoint=select_checkpoint(job.run, job.checkpoint),
        weights=job.weights,
        device=job.device,
        needs_loss=False,
    )
    task: Any = checkpointed.task
    if not (isinstance(checkpointed.task, LanguageModelTask) and checkpointed.task.causal):
        raise ConfigError(_no_language_model(type(task).__name__, folder))
    tokenizer = Tokenizer.from_str(task.artifact_files()[TOKENIZER])
    _, max_length = task.axis_limits()["sequence"]
    model = checkpointed.inference_model()
    return TextGenerator(
        lambda: open_session(model), _without_limits(tokenizer), task.end_id, max_length, checkpointed.device
    )


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """Switch off truncation and padding of a tokenizer and return it."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_language_model(folder: Path) -> None:
    """Refuse a run of another task before anything heavy is loaded."""
    task = load_stored_config(folder, key="run")["task"]["_target_"]
    if str(task).startswith("trainer.") and attribute(task, "causal") is not True:
        raise ConfigError(_no_language_model(str(task).rpartition(".")[2], folder))


def _no_language_model(task: str, folder: Path) -> str:
    problem = f"contains no causal language model, but a model for the task {task}"
    return format_error("run", problem, "Train one: trainer train task=causal_lm", value=str(folder))


def _continue_prompts(job: GenerateJob, generator: TextGenerator, write: Write | None) -> tuple[int, int]:
    """Return the number of prompts and the number of those that could not be continued."""
    import torch

    from trainer.builders.instantiate import instantiate
    from trainer.decode.generation import PromptError
    from trainer.precision import Precision

    decode = instantiate("decode", job.decode)
    number = num_errors = 0
    with torch.inference_mode(), Precision(job.precision, generator.device).autocast():
        for number, text in enumerate(_read_prompts(job.prompt), 1):
            try:
                prompt = generator.encode_prompt(_require_text(text))
            except (DataError, PromptError) as error:
                if job.prompt not in (None, "-"):
                    raise ConfigError(format_error("prompt", str(error), value=text)) from error
                num_errors += 1
                _write_error(write, number, text, error)
                continue
            assert isinstance(text, str), "errors were handled above"
            if unknown := generator.count_unknown_tokens(prompt):
                _print_note(f"prompt {number}: {unknown} of its {prompt.length} tokens are not in the vocabulary")
            reasons = set()
            with generator.context():
                continuations = decode(generator.open_session(), prompt)
            for continuation in continuations:
                with generator.context():
                    generated = generator.complete(text, prompt, continuation, job.decode.get("stop", ()))
                    steps = [] if job.explain is None else generator.explain(prompt, continuation, job.explain)
                _write_text(write, text, generated, steps)
                reasons.add(generated.ended)
            _print_end_reasons(number, reasons, generator.max_length)
    return number, num_errors


def _read_prompts(prompt: str | None) -> Iterator[str | DataError]:
    """Yield the prompts, and a DataError for a line that is not UTF-8."""
    if prompt not in (None, "-"):
        if Path(str(prompt)[:_MAX_NAME_LENGTH]).is_file():
            _print_note(f"prompt: used as a text. To continue the lines of the file {prompt}: prompt=- < {prompt}")
        yield str(prompt)
        return
    if sys.stdin.isatty():
        _print_note("reading prompts from standard input, one per line")
    for line in read_stdin_lines():
        if line is not None:
            yield line if isinstance(line, DataError) else line.rstrip("\r")


def _require_text(text: str | DataError) -> str:
    if isinstance(text, DataError):
        raise text
    return text


def _print_note(note: str) -> None:
    print_lines(f"note: {note}")


def _print_end_reasons(number: int, reasons: Collection[EndReason], max_length: int) -> None:
    """Explain texts of a prompt that ended early."""
    if "context" in reasons:
        limit = f"{max_length} tokens, the maximum length of the model (task.max_length)"
        _print_note(f"prompt {number}: its text ended at {limit}")
    if "exhausted" in reasons:
        _print_note(f"prompt {number}: its text ended because decode.no_repeat_ngram leaves no token to continue with")


def _write_error(write: Write | None, number: int, text: str | DataError, error: Exception) -> None:
    """Print the error of a line; in an output file it takes the place of the text."""
    message = str(error) if isinstance(text, DataError) else format_error(f"line {number}", str(error), value=text)
    print_lines(message)
    if write is not None:
        write({"prompt": None if isinstance(text, DataError) else text, "error": message})
        sys.stdout.flush()


def _write_text(write: Write | None, prompt: str, generated: GeneratedText, steps: Sequence[ExplainedStep]) -> None:
    if write is None:
        if steps:
            _print_steps(steps)
        print(escape_controls(generated.text), flush=True)
        return
    line = {"prompt": prompt, **asdict(generated)} | ({"steps": [asdict(step) for step in steps]} if steps else {})
    if generated.score is None:
        del line["score"]
    write(line)
    sys.stdout.flush()


def _print_steps(steps: Sequence[ExplainedStep]) -> None:
    """Print one row per step: the text so far, the most likely next tokens, and the chosen one if it is another."""
    columns = ["input", *(f"choice {place}" for place in range(1, len(steps[0].choices) + 1))]
    show_chosen = any(step.chosen != step.choices[0] for step in steps)
    rows = []
    for step in steps:
        text = " ".join(step.input.split())
        choices = [*step.choices, step.chosen] if show_chosen else step.choices
        shown = [f"{choice.token!r} {choice.probability:.2%}" for choice in choices]
        rows.append([text if len(text) <= _SHOWN_CHARACTERS else f"…{text[-_SHOWN_CHARACTERS:]}", *shown])
    print_table(open_console("auto"), "next tokens", [*columns, "chosen"] if show_chosen else columns, rows)
