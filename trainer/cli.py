"""The command `trainer`: finds the verb, checks the command line, starts the job. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from trainer.errors import ConfigError, Interrupted, TrainerError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from trainer.config.lint import Plan

VERBS = {
    "train": "train a model; score the best weights on the test split; write and prove the artifacts",
    "plan": "all that can be known of a training job without running it: steps, schedule, model, memory, files",
    "eval": "score a checkpoint of a run on a split",
    "export": "write a checkpoint of a run as artifacts, each proved equal to the model",
    "predict": "answer rows without targets: a text, standard input, a file of any kind",
    "generate": "go on with a text, with the language model of a run",
    "verify": "check the checkpoints and artifacts of a run; replay a stretch of it, bit for bit",
    "diff": "two runs: what differs in their configs and results, and the first step where they part",
    "report": "one offline page about a run, or several side by side: curves, scores, artifacts, config",
}

HELP = """\
usage: trainer VERB [key=value ...] [flags]

verbs
{verbs}

flags
  -h, --help      this page; after a verb its keys, e.g. trainer train loss=focal --help
  --version       the version
  --debug         tracebacks of errors
  -m, --multirun  a sweep: a job for each combination of key=a,b
  and all of Hydra's: --cfg job, --info, --config-dir, --shell-completion, ... (trainer VERB --hydra-help)

examples
  trainer train
  trainer train data=files data.train=my.csv train.duration=3ep optimizer.lr=3e-4
  trainer plan loss=focal train.batch_size=256
  trainer train -m loss=focal,cross_entropy seed=0,1,2
  trainer train resume=runs/2030-01-31_12-00-00
  trainer eval run=runs/2030-01-31_12-00-00 split=test
  trainer export run=runs/2030-01-31_12-00-00 export.formats=[onnx]
  trainer predict run=runs/2030-01-31_12-00-00 input=my.csv output=answers.jsonl
  trainer generate run=runs/2030-01-31_12-00-00 prompt="Return the" decode=beam
  trainer verify run=runs/2030-01-31_12-00-00
  trainer diff left=runs/2030-01-31_12-00-00 right=runs/2030-02-01_12-00-00
  trainer report run=runs/2030-01-31_12-00-00

exit codes
  0 done                      3 a checkpoint or a run cannot be used   6 the data cannot be used
  1 a bug, with a traceback   4 an artifact failed its proof          75 stopped by a signal, can be resumed
  2 the command is wrong      5 the run diverged
"""


class JobFailed(Exception):  # noqa: N818  what failed has been told already
    """A job of a sweep ended with an exit code; the other jobs go on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (without the program's name) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        _run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not fail once more when it flushes at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except JobFailed as failed:
        return failed.exit_code
    except Exception as error:
        told = _user_error(error)
        if told is None:
            raise
        if debug:
            traceback.print_exception(error)
        _tell(told)
        return told.exit_code
    return 0


def _user_error(error: BaseException | None) -> TrainerError | None:
    """The user error that an exception is or was caused by."""
    while error is not None and not isinstance(error, TrainerError):
        error = error.__cause__
    return error


def _tell(error: TrainerError) -> None:
    print(*error.messages, sep="\n", file=sys.stderr, flush=True)


def _run(arguments: list[str]) -> None:
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
    verb, *rest = arguments
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        raise ConfigError(f"{verb}: there is no such verb. " + (f"Did you mean {near[0]}." if near else _known()))
    if {"-h", "--help"} & set(rest):
        from trainer.config.help import verb_help

        print(f"usage: trainer {verb} [key=value ...] [flags]\n\n{VERBS[verb]}\n{verb_help(verb, rest)}")
        return
    _run_verb(verb, rest)


def _known() -> str:
    return f"Known: {', '.join(VERBS)}. trainer --help tells more."


def _run_verb(verb: str, rest: list[str]) -> None:
    # A console script lacks what `python -m` has: parts and data readers of the working directory can be imported.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    from trainer.config.lint import check_command

    plan = check_command(verb, rest)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    if plan.resumed is not None:
        _start(verb, *plan.job_of(plan.resumed))
    else:
        _through_hydra(plan)


def _start(verb: str, job: object, config: dict[str, object]) -> None:
    import_module(f"trainer.commands.{verb}").run(job, config)


def _through_hydra(plan: Plan) -> None:
    """Hydra composes and runs the job or the jobs, or shows what its flags ask for."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from hydra.types import RunMode

    from trainer.config.compose import one_line

    failures: list[Exception] = []

    def task(config: DictConfig) -> None:
        about = HydraConfig.get()
        swept = about.mode == RunMode.MULTIRUN
        if swept:
            print(f"job {about.job.num}: {' '.join(about.overrides.task)}", file=sys.stderr)
        try:
            run_dir = os.path.relpath(about.runtime.output_dir) if swept else None
            _start(plan.request.verb, *plan.job(config, about.runtime.choices, run_dir))
        except Exception as error:
            if swept:
                _end_job(error)
            failures.append(error)

    # Hydra then lets every exception of a sweep through, whole and with its cause.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *plan.hydra_argv]
    try:
        hydra.main(version_base="1.3", config_path=str(plan.request.folder), config_name=plan.request.name)(task)()
    except (ConfigCompositionException, MissingConfigException, OverrideParseException) as error:
        raise ConfigError(one_line(error)) from error
    if failures:
        # Past Hydra, which would put a line of its own before what is told.
        raise failures[0]


def _end_job(error: Exception) -> NoReturn:
    """Tells at once what ended a job of a sweep; a signal ends the whole sweep."""
    told = _user_error(error)
    if told is None:
        raise error
    _tell(told)
    if isinstance(told, Interrupted):
        sys.exit(told.exit_code)
    raise JobFailed(told.exit_code) from error


def _complete(arguments: list[str]) -> None:
    """Shell completion: of verbs here, of what follows a verb by Hydra, which is not told of the verb."""
    program, *words = os.environ.get("COMP_LINE", "trainer").split(" ")
    verb = words[0] if words else ""
    if len(words) > 1 and verb in VERBS:
        os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
        _run_verb(verb, arguments)
    elif any(argument.startswith("query=") for argument in arguments):
        print(" ".join(name for name in VERBS if name.startswith(verb)))
    else:
        _run_verb("train", arguments)
