"""What goes on with texts: the language model of a run, or a folder of artifacts alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.folders import argument, existing_run_folder, named_checkpoint
from trainer.config.jobs import GenerateJob
from trainer.config.signatures import attribute
from trainer.config.stored import exported_config, job_from_text, load_stored_config
from trainer.data.readers import first_line_of
from trainer.errors import CheckpointError, ConfigError, format_error, raise_if_any
from trainer.layout import EXPORT, EXPORT_MANIFEST, ONNX_CACHE, TOKENIZER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from trainer.decode.generation import TextGenerator


def writer_of(job: GenerateJob) -> TextGenerator:
    """The model that `run` and `backend` name; what is wrong with them is told before anything heavy is loaded.

    Raises:
        ConfigError: It is no causal language model, or keys of the job are not for it.
        CheckpointError: It cannot be used.
    """
    exported = None if job.backend == "torch" else _exported(job)
    return _writer_of_run(job) if exported is None else _writer_of_artifact(job, exported)


def _exported(job: GenerateJob) -> Path | None:
    """The folder of artifacts that reads in the model's place; None where the run does."""
    if job.run is not None and exported_config(job.run) is not None:
        return Path(job.run)
    if job.backend is None:
        return None
    folder = existing_run_folder(job.run)
    _check_language_model(folder)
    return folder / EXPORT


def _writer_of_artifact(job: GenerateJob, folder: Path) -> TextGenerator:
    """A writer that needs no more than a folder of artifacts."""
    try:
        manifest = json.loads((folder / EXPORT_MANIFEST).read_text(encoding="utf-8"))
        graph, end_id = folder / ONNX_CACHE, manifest["artifacts"]["onnx_cache"]["end_id"]
        _, max_length = manifest["axes"]["sequence"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"Write it: trainer export {argument('run', folder.parent)} export.formats=[onnx_cache]"
        problem = "there is no decoder as an artifact"
        raise CheckpointError(format_error("backend", problem, remedy, value=str(folder / ONNX_CACHE))) from error
    usual = {"checkpoint": ("best",), "weights": ("auto",), "precision": ("fp32",), "device": ("auto", "cpu")}
    wrong = [key for key, values in usual.items() if getattr(job, key) not in values]
    raise_if_any(
        *(
            format_error(key, "is of a run, not of an artifact", "Leave it out", value=getattr(job, key))
            for key in wrong
        )
    )
    import torch
    from tokenizers import Tokenizer

    from trainer.decode.generation import TextGenerator
    from trainer.decode.onnx_session import OnnxSession, load_graph

    try:
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        session = load_graph(graph)
    except Exception as error:  # of many types: the folder came from anywhere
        problem = f"cannot be used ({type(error).__name__}: {first_line_of(error)})"
        raise CheckpointError(format_error(str(folder), problem, "Get the folder again")) from error
    return TextGenerator(lambda: OnnxSession(session), _whole(tokenizer), end_id, max_length, torch.device("cpu"))


def _writer_of_run(job: GenerateJob) -> TextGenerator:
    folder = existing_run_folder(job.run)
    _check_language_model(folder)
    from tokenizers import Tokenizer

    from trainer.builders.checkpointed import load_checkpointed_model
    from trainer.decode.generation import TextGenerator
    from trainer.decode.kv_cache import open_session
    from trainer.protocols import LanguageModelTask

    trained = load_checkpointed_model(
        folder,
        lambda text: job_from_text(text, trust=job.trust),
        checkpoint=named_checkpoint(job.run, job.checkpoint),
        weights=job.weights,
        device=job.device,
    )
    task: Any = trained.task
    if not (isinstance(trained.task, LanguageModelTask) and trained.task.causal):
        raise ConfigError(format_error("run", "holds no causal language model", value=f"task {type(task).__name__}"))
    tokenizer = Tokenizer.from_str(task.artifact_files()[TOKENIZER])
    _, max_length = task.axis_limits()["sequence"]
    model = trained.inference_model()
    return TextGenerator(lambda: open_session(model), _whole(tokenizer), task.end_id, max_length, trained.device)


def _whole(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, which now neither cuts nor pads."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_language_model(folder: Path) -> None:
    """Refuses a run of another task before anything heavy is loaded."""
    task = load_stored_config(folder, key="run")["task"]["_target_"]
    if str(task).startswith("trainer.") and attribute(task, "causal") is not True:
        problem = "holds no causal language model"
        raise ConfigError(format_error("run", problem, "Train one: trainer train task=causal_lm", value=f"task {task}"))
