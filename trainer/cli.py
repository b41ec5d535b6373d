"""The command `trainer`: find the verb, check the command line, start the job. Imports nothing heavy."""

from __future__ import annotations

import atexit
import gc
import os
import re
import resource
import shlex
import sys
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from difflib import get_close_matches
from importlib import import_module
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.display import MASK, escape_controls, is_secret, masked_yaml, print_lines
from trainer.distributed.environment import (
    is_first_on_machine,
    is_rank,
    is_reported_elsewhere,
    reported_once_per_machine,
    require_cuda_driver,
    set_rank_defaults,
)
from trainer.errors import ConfigError, Interrupted, TrainerError, find_user_error, format_error
from trainer.layout import Document
from trainer.signals import drop_output, drop_unwritable_output, open_missing_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from omegaconf import DictConfig

    from trainer.config.command import CheckedCommand, InputCheck

VERBS = {
    "init": "look at your data and write an experiment that trains on it, or write a part of your own",
    "train": "train a model, evaluate its best weights on the test split, and write proved artifacts",
    "plan": "show a training job without running it: steps, schedule, model, memory, files",
    "eval": "evaluate a checkpoint of a run on a split",
    "export": "write a checkpoint of a run as artifacts, each proved equal to the model",
    "predict": "predict for a text, standard input, a file or a folder of images",
    "generate": "continue a prompt with a trained language model",
    "verify": "check the checkpoints and artifacts of a run, and replay some of its steps bit for bit",
    "diff": "compare two runs (configs, results, the first step at which they diverge), or two sweeps",
    "report": "write an offline page about one or several runs: curves, scores, artifacts, config",
    "schema": "write a JSON Schema of the config, with which an editor completes and checks YAML files",
    "doctor": "check this machine: Python, torch, devices, memory, disks, network, and a small training",
    "serve": "answer rows over HTTP with an exported model, and show a form to try it in a browser",
    "card": "write a model card about a run and its artifacts: README.md of a repository on a hub",
    "push": "send the artifacts of a run and its model card to a repository of the Hugging Face hub",
}

INPUT_CHECKS = {"predict": "trainer.predict.files"}
"""Modules that check more values of a verb with `input_problems`; imported only for that verb."""

WITHOUT_TORCH = ("init", "diff", "report", "schema", "doctor", "serve", "card", "push")
"""Verbs that load no torch."""

SHORT_FLAGS = {"init": "--ask", "doctor": "--quick"}
"""The flag of a verb that is short for a key of the same name."""

_LEAST_ADDRESS_SPACE = 800_000_000
"""Bytes without which torch cannot be loaded."""

HELP = """\
usage: trainer VERB [RUN] [key=value ...] [flags]

verbs
{verbs}

flags
  -h, --help      show this page, or the keys of a verb: trainer train loss=focal --help
  --version       show the version
  --debug         show the traceback of an error
  -m, --multirun  run a sweep: one job for each combination of key=a,b
  and all flags of Hydra: --cfg job, --info, --config-dir, --shell-completion, ... (see trainer VERB --hydra-help)

examples
  trainer init my.csv
  trainer init part=loss name=my_loss
  trainer train
  trainer train data=files data.train=my.csv train.duration=3ep optimizer.lr=3e-4
  trainer plan loss=focal train.batch_size=256
  trainer train -m loss=focal,cross_entropy seed=0,1,2 sweep.name=losses
  trainer train resume=runs/2030-01-31_12-00-00
  trainer eval runs/2030-01-31_12-00-00 split=test
  trainer export run=runs/2030-01-31_12-00-00 export.formats=[onnx]
  trainer predict runs/2030-01-31_12-00-00 input=my.csv output=predictions.jsonl
  trainer predict "a text for the newest run"
  trainer generate run=runs/2030-01-31_12-00-00 prompt="Return the" decode=beam
  trainer verify run=runs/2030-01-31_12-00-00
  trainer diff runs/2030-01-31_12-00-00 runs/2030-02-01_12-00-00
  trainer report runs/2030-01-31_12-00-00
  trainer schema output=conf/schema.json
  trainer doctor
  trainer serve runs/2030-01-31_12-00-00 port=8000
  trainer card runs/2030-01-31_12-00-00 license=mit
  trainer push runs/2030-01-31_12-00-00 to=owner/name dry_run=true

exit codes
  0 success                   3 a checkpoint or a run cannot be used   6 the data cannot be used
  1 a bug, with a traceback   4 an artifact failed its proof          75 stopped; can be resumed
  2 the command is wrong      5 the run diverged                       128 + N signal N killed a process of the run
"""


class JobFailed(Exception):  # noqa: N818  its error has been printed already
    """A job of a sweep failed or was stopped, with an exit code; its error has been printed."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def main(argv: list[str] | None = None) -> int:
    """Run a command line (without the program's name) and return its exit code.

    Args:
        argv: The command line; None takes this process's own, which then is expected to end.
    """
    # Libraries start Python for their workers, which would import from the working directory first.
    os.environ["PYTHONSAFEPATH"] = "1"
    open_missing_streams()
    set_rank_defaults()
    if argv is not None:
        return _main(list(argv))
    if not is_rank():
        exit_code = _main(sys.argv[1:])
        drop_unwritable_output()
        return exit_code
    exit_code = 1

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(exit_code)

    # The threads of a process group let go of tensors when they like, and abort if Python is ending by then. What is
    # registered first runs last.
    atexit.register(end)
    exit_code = _main(sys.argv[1:])
    return exit_code


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["--rank"] and len(arguments) == 2:  # started by `trainer.distributed.launch`
        return _run_rank(Path(arguments[1]))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that the encoding of the screen lacks
    if arguments[:1] == ["--job"] and len(arguments) == 2:  # started by a sweep
        from trainer.commands.sweep_jobs import run_job_file

        return run_job_file(Path(arguments[1]), lambda argv: _run_verb("train", argv))
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop_output()
        return 141
    except JobFailed as failed:
        return failed.exit_code
    except Exception as error:
        user_error = find_user_error(error, next(iter(arguments), ""))
        if user_error is None:
            raise
        if debug:
            traceback.print_exception(error)
        if not is_reported_elsewhere(user_error):
            _print_error(user_error)
        return user_error.exit_code
    return 0


def _print_error(error: TrainerError) -> None:
    with suppress(OSError):  # nobody can be told, but the exit code says what has happened
        print_lines(*error.messages)


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<8} {does}" for verb, does in VERBS.items())), end="")
        return
    if arguments[0] == "--version":
        from trainer import __version__

        print(f"trainer {__version__}")
        return
    if arguments[0] in ("--shell-completion", "-sc"):
        _complete(arguments)
        return
    try:
        os.getcwd()
    except FileNotFoundError as error:
        problem = "has been removed"
        raise ConfigError(format_error("working directory", problem, "Change to another folder")) from error
    verb, *rest = arguments
    rest = [f"{argument[2:]}=true" if argument == SHORT_FLAGS.get(verb) else argument for argument in rest]
    if verb not in VERBS:
        raise ConfigError(f"{verb}: unknown verb. {_verb_remedy(verb)}")
    if {"-h", "--help"} & set(rest):
        with _garbage_collection_off():
            from trainer.config.help import verb_help
            from trainer.config.jobs import POSITIONS

            keys = verb_help(verb, rest)
        positions = "".join(f" [{key.upper()}]" for key in POSITIONS.get(verb, ()))
        print(f"usage: trainer {verb}{positions} [key=value ...] [flags]\n\n{VERBS[verb]}\n{keys}")
        return
    _run_verb(verb, rest)


def _verb_remedy(verb: str) -> str:
    from trainer.config.foreign_names import foreign_name, foreign_verbs

    if "=" in verb:
        key, _, value = verb.lstrip("-").partition("=")
        foreign = foreign_name(key)
        override = (foreign and foreign.translate(value)) or f"{key}={value}"
        return f"Put the verb first, for example: trainer train {override}"
    if verb not in foreign_verbs() and os.path.exists(verb):
        return f"To train on your data, write its job first: trainer init {shlex.quote(verb)}."
    known = (*VERBS, "--help", "--version")
    near = [foreign_verbs()[verb]] if verb in foreign_verbs() else get_close_matches(verb, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(VERBS)}. See trainer --help."


def _run_rank(path: Path) -> int:
    """Run one process of a job that several processes run together."""
    from trainer.distributed.launch import run_rank

    def start(verb: str, config: Document, overrides: list[Any]) -> None:
        from trainer.config.command import job_of_config

        _start(verb, job_of_config(verb, config, overrides), config)

    return run_rank(path, start)


def _run_verb(verb: str, rest: Sequence[str]) -> None:
    with _garbage_collection_off(), reported_once_per_machine():
        from trainer.config.command import check_command
        from trainer.config.groups import make_importable

        make_importable(name for text in rest if "hydra" in text for name in re.findall(r"[^\W\d]\w*(?=\.)", text))
        command = check_command(verb, rest, _input_check(verb))
    for note in command.notes if is_first_on_machine() else ():
        print_lines(f"note: {note}")
    single = command.single
    if command.sweep is not None:
        from trainer.commands.sweep import run_sweep

        if code := run_sweep(command.sweep, lambda argv: _run_verb("train", argv)):
            raise JobFailed(code)
    elif single is None:
        _run_hydra(command)
    elif single.hydra is None:
        _start(verb, single.job, single.config)
    else:
        from trainer.config.compose import run_with_hydra

        run_with_hydra(single.hydra, lambda: _start(verb, single.job, single.config))


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Turn the cyclic garbage collector off: a start makes many objects that live as long as the process.

    Afterwards the collector ignores these objects until the next start, or it would scan all of them once.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    gc.unfreeze()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _input_check(verb: str) -> InputCheck | None:
    """Return the check of the verb's inputs; it is in a layer above the config and is imported only for this verb."""
    module = INPUT_CHECKS.get(verb)
    return None if module is None else import_module(module).input_problems


def _check_memory_limit() -> None:
    """Raise ConfigError if the libraries cannot be loaded under this limit: some end the process without a message."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESS_SPACE:
        problem = "the libraries of the program do not fit into the address space of the process"
        remedy = "Raise its limit to at least 4 GB: ulimit -v 4000000"
        raise ConfigError(format_error("out of memory", problem, remedy, value=f"{limit / 1e9:.1f} GB"))


def _start(verb: str, job: object, config: Document) -> Document | None:
    """Run a job; return the best score if it trains."""
    from trainer.config.groups import make_importable
    from trainer.config.trust import named_packages

    make_importable(named_packages(config))
    if verb not in WITHOUT_TORCH:
        _check_memory_limit()
        if verb != "plan":  # which runs on the CPU
            with reported_once_per_machine():
                require_cuda_driver(getattr(job, "device", None))
    score: Document | None = import_module(f"trainer.commands.{verb}").run(job, config)
    return score


def _run_hydra(command: CheckedCommand) -> None:
    """Let Hydra run the jobs of a sweep, or show what its flags ask for."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from trainer.config.compose import composition_problem

    line = command.line

    def task(config: DictConfig) -> float | None:
        """Run a job; return the monitored metric, which is the objective of Hydra's sweepers."""
        hydra_config = HydraConfig.get()
        is_sweep = hydra_config.mode == RunMode.MULTIRUN
        if is_sweep and is_first_on_machine():
            # As they are written: a reference to the environment may be a secret.
            overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
            assert isinstance(overrides, list)
            print_lines(f"job {hydra_config.job.num}: {' '.join(overrides)}")
        try:
            run_dir = os.path.relpath(hydra_config.runtime.output_dir) if is_sweep else None
            score = _start(line.verb, *command.composed_job(config, hydra_config.runtime.choices, run_dir))
        except Exception as error:
            _end_job(error, line.verb, hydra_config.job.num if is_sweep else None)
        if score is None:
            return None
        if is_sweep and is_first_on_machine():
            from trainer.commands.run_folders import describe_score

            print_lines(f"job {hydra_config.job.num}: {describe_score(score)}")
        return float(score["value"])

    # Hydra then lets every exception of a sweep through, whole and with its cause.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *line.hydra_argv()]
    hydra_main = hydra.main(version_base="1.3", config_path=str(line.folder), config_name=line.config_name)(task)
    if line.arguments.shows_hydra or line.arguments.options.cfg:
        _show(hydra_main, line.arguments.options.package)
        return
    try:
        hydra_main()
    except (ConfigCompositionException, MissingConfigException, OverrideParseException) as error:
        raise ConfigError(composition_problem(error)) from error
    except RuntimeError as error:
        if (launcher_error := _launcher_error(error)) is None:
            raise
        raise launcher_error from error


def _launcher_error(error: RuntimeError) -> TrainerError | None:
    """Return the user error of a launcher of submitit: it cannot submit jobs, or one has ended without a result."""
    text, key = " ".join(str(error).split()), "hydra/launcher"
    if text.startswith('Could not detect "srun"'):
        remedy = "Run it on a machine of the cluster, or set hydra/launcher=submitit_local"
        return ConfigError(format_error(key, "this machine has no Slurm", remedy))
    names = type(error).__name__, type(error.__cause__).__name__
    if names == ("FailedJobError", "CalledProcessError"):
        return ConfigError(format_error(key, f"Slurm has refused the jobs ({text})", "Change keys of hydra.launcher"))
    if names[0] == "UncompletedJobError" and (log := re.search(r"with path (.+)_result\.pkl", text)):
        problem = "a job has ended without a result: it was stopped or killed, or its time was over"
        return Interrupted(format_error(key, problem, f"Read {log[1]}_log.err"))
    return None


def _show(hydra_main: Callable[[], Any], package: str | None) -> None:
    """Print what Hydra shows, without secrets; whatever it cannot show is an error of the command line."""
    from trainer.config.compose import composition_problem

    with redirect_stdout(StringIO()) as shown, redirect_stderr(StringIO()) as problem:
        try:
            hydra_main()
        except SystemExit as end:
            if end.code:
                raise ConfigError(problem.getvalue().strip()) from None
        except Exception as error:
            raise ConfigError(composition_problem(error)) from error
    text = MASK + "\n" if package is not None and is_secret(package) else masked_yaml(shown.getvalue())
    print(escape_controls(text), end="")


def _end_job(error: Exception, verb: str, number: int | None) -> NoReturn:
    """Print the error of a job at once. A signal ends the whole sweep; `number` is the job's place in it."""
    user_error = find_user_error(error, verb)
    if user_error is None:
        raise error
    _print_error(user_error)
    if isinstance(user_error, Interrupted):
        if number is not None and is_first_on_machine():
            before = {0: "no job is", 1: "job 0 is"}.get(number, f"jobs 0 to {number - 1} are")
            print_lines(f"sweep: stopped in job {number}; {before} complete. Start the other jobs again.")
        sys.exit(user_error.exit_code)
    raise JobFailed(user_error.exit_code) from error


def _complete(arguments: list[str]) -> None:
    """Complete verbs here; Hydra, which does not know the verb, completes the rest of the line."""
    program, *words = os.environ.setdefault("COMP_LINE", "trainer ").split(" ")
    verb = words[0] if words else ""
    if len(words) > 1 and verb in VERBS:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
        _run_verb(verb, arguments)
    elif any(argument.startswith("query=") for argument in arguments):
        print(" ".join(name for name in VERBS if name.startswith(verb)))
    else:
        _run_verb("train", arguments)
