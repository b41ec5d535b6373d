"""The library: `trainer.train` and `trainer.load`, and the run that they return.

A job takes the same path as on the command line: the same checks, messages and files. The process belongs to the
caller, so everything global that a job changes is as before when a function returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainer.caller import caller_undisturbed, torch_undisturbed
from trainer.commands.run_folders import (
    claim_fixed_folder,
    create_run_folder,
    find_run_folder,
    read_best_score,
    read_run,
)
from trainer.config.arguments import as_text
from trainer.config.command import CheckedJob, check_command, job_of_config
from trainer.config.groups import make_importable
from trainer.config.jobs import EvalJob, ExportJob, Job, PredictJob, TrainJob
from trainer.config.stored import load_stored_config
from trainer.config.trust import named_packages, trust_argument
from trainer.display import print_lines
from trainer.errors import ConfigError, DataError, RowErrors, format_error, raise_if_any
from trainer.layout import CHECKPOINTS, DATA, LOCK, METRICS, Document
from trainer.validation_sets import VALIDATION, file_stem, name_problems, set_split

if TYPE_CHECKING:
    from trainer.predict.input_rows import RowFormat
    from trainer.predict.predictor import Predictor

Table = Any
"""A data frame of pandas or polars, a data set of datasets, an Arrow table, a list of dicts or a dict of lists."""


def train(
    *overrides: str,
    data: Table | str | Path | None = None,
    validation: Table | str | Path | Mapping[str, Table | str | Path] | None = None,
    test: Table | str | Path | None = None,
    verbose: bool = True,
    **settings: object,
) -> Run:
    """Train a model as `trainer train` does, and return the run.

    Args:
        overrides: Overrides as on the command line: `"loss=focal"`, `"train.duration=3ep"`.
        data: The training rows: a data frame of pandas or polars, a data set of datasets, an Arrow table, a list of
            dicts, a dict of lists, or the path of a file. Rows in memory are kept in the run folder, so every verb can
            read them later. None trains on the source that the overrides name.
        validation: The rows of the validation split, or of several sets by name: `{"clean": table, "noisy": table}`;
            None holds out a share of `data`.
        test: The rows of the test split; None holds out a share of `data`.
        verbose: Show the progress; False prints only warnings.
        settings: Overrides by name: `seed=1`, `optimizer={"lr": 1e-3}`.

    Raises:
        TrainerError: Every error that the user can fix, with its `exit_code` and all its `messages`.
        KeyboardInterrupt: Ctrl-C stopped the run after a complete step and its checkpoint; the message says how to
            resume.
    """
    _refuse_tables(overrides, settings)
    texts = [*overrides, *_as_overrides(settings)]
    if not verbose:
        texts.append("logger.console=none")
    splits = {"train": data, **_validation_splits(validation), "test": test}
    rows_by_split = {split: rows for split, rows in splits.items() if rows is not None}
    _check_arguments(texts, rows_by_split)
    with caller_undisturbed("train"):
        tables = {split: rows for split, rows in rows_by_split.items() if not isinstance(rows, str | Path)}
        files = {split: str(rows) for split, rows in rows_by_split.items() if split not in tables}
        if not tables:
            checked = _check("train", [*texts, *_data_overrides(files)])
            return Run(_train(checked.job, checked.config))
        return Run(_train_on_tables(texts, rows_by_split, tables))


def load(path: str | Path | None = None, *, trust: Sequence[str] = ()) -> Run:
    """Return the run in a folder; nothing that its config names is executed by that.

    Args:
        path: The run folder, or one of its checkpoints; None is the newest run.
        trust: Packages of your own whose code the run's config may name.

    Raises:
        CheckpointError: There is no run, or its config cannot be read.
    """
    folder = find_run_folder(None if path is None else str(path))
    load_stored_config(folder, "run")
    return Run(folder, trust=trust)


class Run:
    """A run folder: its config and scores, and what its model can do.

    Args:
        path: The run folder.
        trust: Packages whose code the run's config may name; None trusts it, because this process has written it.
    """

    def __init__(self, path: Path, *, trust: Sequence[str] | None = None) -> None:
        self.path = path.absolute()
        argument = trust_argument(self.config).strip() if trust is None else f"trust=[{','.join(trust)}]"
        self._arguments = [_override("run", str(self.path)), *([argument] if argument else [])]
        self._predictors: dict[tuple[str, ...], tuple[Predictor, RowFormat]] = {}

    @property
    def config(self) -> Document:
        """The resolved config of the run; it names environment variables and does not contain their values."""
        return load_stored_config(self.path, "run")

    @property
    def metrics(self) -> dict[str, float]:
        """The loss and the metrics of the best weights, on the test split if the run has one, else on validation."""
        return self._read_scores()[1]

    def _read_scores(self) -> tuple[str, dict[str, float]]:
        """Return the name and the scores of the evaluation that `metrics` shows."""
        record = read_run(str(self.path))
        name = "test" if record.evaluations.get("test") else record.monitored_evaluation
        return name, _scores(record.evaluations.get(name) or {})

    @property
    def best(self) -> Document | None:
        """The step and the validation score of the best checkpoint; None if no checkpoint has a score."""
        return read_best_score(self.path)

    def predict(self, rows: Table | Sequence[str] | str, *overrides: str) -> list[dict[str, Any]]:
        """Return the prediction of each row, as `trainer predict` writes it. The model stays loaded for the next call.

        Args:
            rows: A text, texts, or rows with the columns of the training data: every kind of table that `train` takes.
            overrides: Overrides of `trainer predict`: `"top=3"`, `"backend=onnx"`.

        Raises:
            TrainerError: The run or an override cannot be used.
            DataError: Some rows cannot be used; they are listed.
        """
        from trainer.data.frames import to_rows

        rows = [rows] if isinstance(rows, str) else rows
        is_values = isinstance(rows, list | tuple) and not all(isinstance(row, Mapping) for row in rows)
        values = list(rows) if is_values else [] if _is_empty(rows) else to_rows("rows", rows)
        with caller_undisturbed("predict"):
            if overrides not in self._predictors:
                job = self._check("predict", ["input='-'", *overrides])
                assert isinstance(job, PredictJob)
                with torch_undisturbed():
                    from trainer.commands.predict import load_predictor

                    self._predictors[overrides] = load_predictor(job)
            with torch_undisturbed():
                return _predict(values, *self._predictors[overrides])

    def evaluate(self, *overrides: str, data: Table | None = None, split: str = "test") -> dict[str, float]:
        """Return the loss and the metrics on a split, as `trainer eval` computes and stores them.

        Args:
            overrides: Overrides of `trainer eval`: `"checkpoint=last"`, `"metrics=[mcc]"`.
            data: Rows in the place of the split's own; they are kept in the run folder.
            split: The split: `train`, `validation` or `test`.
        """
        with caller_undisturbed("eval"):
            texts = [f"split={split}", *overrides]
            if data is None:
                return self._evaluate(texts)
            before = set(self.path.glob(f"{DATA}/*"))
            kept = self._keep(data)
            try:
                return self._evaluate([*texts, _override(f"data.{split}", str(kept))])
            except DataError as error:
                if kept not in before:
                    kept.unlink()
                raise _name_arguments(error, {"train": kept}) from error

    def _evaluate(self, texts: Sequence[str]) -> dict[str, float]:
        job = self._check("eval", texts)
        assert isinstance(job, EvalJob)
        with torch_undisturbed():
            from trainer.commands.eval import check_job, evaluate_run

            check_job(job)
            return dict(evaluate_run(job)[1].values)

    def export(self, *formats: str, overrides: Sequence[str] = ()) -> dict[str, Path]:
        """Write and prove artifacts as `trainer export` does; return the file or folder of each of these formats.

        Artifacts that the folder keeps from an earlier export are not returned.

        Args:
            formats: The formats, such as `"onnx"`; without any, `export.formats` of the overrides or its default.
            overrides: Overrides of `trainer export`: `["checkpoint=last"]`.

        Raises:
            ProofError: An artifact is not equal to the model.
        """
        with caller_undisturbed("export"):
            chosen = [f"export.formats=[{','.join(formats)}]"] if formats else []
            job = self._check("export", [*chosen, *overrides])
            assert isinstance(job, ExportJob)
            with torch_undisturbed():
                from trainer.commands.export import export_run

                paths = {artifact.name: artifact.path for artifact in export_run(job)[0]}
                return {name: paths[name] for name in job.export["formats"]}

    def _check(self, verb: str, texts: Sequence[str]) -> Job:
        return _check(verb, [*self._arguments, *texts]).job

    def _keep(self, data: Table) -> Path:
        """Write rows into the run folder, under a name that tells their content; return the file."""
        from trainer.data.data_files import content_digest
        from trainer.data.frames import to_table, write_table

        table = to_table("data", data)
        with TemporaryDirectory() as place:
            write_table(Path(place, "rows.parquet"), table)
            kept = self.path / DATA / f"rows-{content_digest(Path(place, 'rows.parquet'))[:8]}.parquet"
        if not kept.exists():
            write_table(kept, table)
        return kept

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return a small table of the scores under the name of their split, for a notebook."""
        split, scores = self._read_scores()
        lines = [f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in scores.items()]
        head = f"<tr><th></th><th>{escape(split) if scores else 'not evaluated yet'}</th></tr>"
        return f"<table><caption>{escape(str(self.path))}</caption>{head}{''.join(lines)}</table>"


def _is_empty(rows: Any) -> bool:
    return hasattr(rows, "__len__") and len(rows) == 0


def _predict(values: Sequence[object], predictor: Predictor, row_format: RowFormat) -> list[dict[str, Any]]:
    from trainer.predict.input_rows import rows_of_values
    from trainer.predict.predictor import RowCounts

    errors = RowErrors()
    predictions: list[dict[str, Any]] = []
    for window in predictor.predict(rows_of_values(values, row_format), RowCounts()):
        for row, prediction in window:
            if row.error is not None:
                errors.add(row.error)
            predictions.append(dict(prediction))
    errors.raise_if_any()
    return predictions


# The way to a job


def _check(verb: str, texts: Sequence[str]) -> CheckedJob:
    """Check a job as the command line does.

    Raises:
        TrainerError: All its errors.
    """
    command = check_command(verb, texts)
    if command.single is None:
        raise ConfigError(format_error("train", "runs one job", "Run sweeps with: trainer train --multirun"))
    for note in command.notes:
        print_lines(f"note: {note}")
    make_importable(named_packages(command.single.config))
    return command.single


def _refuse_tables(overrides: Sequence[object], settings: Mapping[str, object]) -> None:
    """Raise ConfigError for each table that is passed by position, or by a name that is no argument for rows."""
    remedy = "Pass rows by name: data=, validation= or test="
    named = {"overrides": overrides, **{key: [value] for key, value in settings.items()}}
    problems = [
        format_error(key, "takes no rows", remedy, value=type(value).__name__)
        for key, values in named.items()
        for value in values
        if getattr(value, "shape", ()) or hasattr(value, "columns") or hasattr(value, "column_names")
    ]
    raise_if_any(*problems)


def _validation_splits(validation: object) -> dict[str, Any]:
    """Return the argument `validation` by split: `validation`, or `validation.<name>` for each of several sets.

    The values of a dict of lists are columns, the values of a dict of sets are tables or files.

    Raises:
        ConfigError: A name cannot be the name of a set.
    """
    sets = validation if isinstance(validation, Mapping) and validation else {}
    if not sets or not all(
        isinstance(rows, str | Path | Mapping) or hasattr(rows, "columns") or hasattr(rows, "column_names")
        for rows in sets.values()
    ):
        return {VALIDATION: validation}
    raise_if_any(*name_problems(dict(sets), VALIDATION))
    return {file_stem(set_split(str(name))): rows for name, rows in sets.items()}


def _check_arguments(texts: Sequence[object], rows_by_split: Mapping[str, object]) -> None:
    problems = []
    for text in texts:
        if not isinstance(text, str) or "=" not in text or text.startswith(("-", "hydra")):
            remedy = 'Write an override as on the command line, such as "train.duration=3ep"'
            problems.append(format_error("overrides", "expected key=value", remedy, value=text))
    keys = [str(text).partition("=")[0] for text in texts]
    if rows_by_split:
        own = {"data", *(f"data.{split.partition('.')[0]}" for split in rows_by_split)}
        taken = [key for key in keys if key in own]
        remedy = "Leave one of the two out"
        problems += [format_error(key, "the argument data names the data too", remedy) for key in taken]
        if "train" not in rows_by_split:
            problems.append(format_error("data", "is missing", f"Pass data=, as for {next(iter(rows_by_split))}"))
        if any(str(text).startswith("resume=") and text not in ("resume=auto", "resume=null") for text in texts):
            remedy = "Leave data out: the run folder keeps the rows"
            problems.append(format_error("resume", "a run resumes on its own data", remedy))
    raise_if_any(*problems)


def _train(job: Any, config: Document) -> Path:
    """Train; return the run folder."""
    with torch_undisturbed():
        folder: Path = import_module("trainer.commands.train").train_to_end(job, config)
    return folder


def _train_on_tables(texts: Sequence[str], rows_by_split: Mapping[str, Any], tables: Mapping[str, Table]) -> Path:
    """Check the job, keep the tables in the folder of the run, and train on them; return the folder."""
    from trainer.data.frames import to_table, write_table

    with TemporaryDirectory() as place:  # the check needs files; the rows are written when the job is known to be right
        named = {split: Path(place, f"{split}.parquet") for split in tables}
        for file in named.values():
            file.touch()
        files = {split: str(named.get(split, rows)) for split, rows in rows_by_split.items()}
        checked = _check("train", [*texts, *_data_overrides(files)])
    job, config = checked.job, checked.config
    assert isinstance(job, TrainJob)
    rows = {split: to_table(_argument(split), table) for split, table in tables.items()}
    is_new = job.run.dir is None or not Path(job.run.dir).exists()
    folder = claim_fixed_folder(job.run) if job.resume == "auto" else create_run_folder(job.run)
    (folder / LOCK).touch()  # says that the folder is a run's
    kept = {split: folder / DATA / f"{split}.parquet" for split in tables}
    try:
        for split, file in kept.items():
            if not (folder / CHECKPOINTS).is_dir():
                write_table(file, rows[split])
            else:
                _check_same(split, file, rows[split])
        config = config | {
            "data": _with_files(config["data"], {split: str(file) for split, file in kept.items()}),
            "run": config["run"] | {"dir": str(folder)},
        }
        _train(job_of_config("train", config, ()), config)
    except DataError as error:
        # A folder without a started run is removed, and nobody knows its files.
        raise _name_arguments(error, kept) from error
    finally:
        if is_new and not (folder / METRICS).exists():
            _remove(folder, kept.values())
    return folder


def _check_same(split: str, file: Path, table: Any) -> None:
    """Raise DataError if a run that goes on was given other rows than it has kept."""
    from pyarrow import parquet

    if not file.is_file() or not parquet.read_table(file).equals(table):
        problem = f"differs from the rows that the run was trained on ({file})"
        remedy = "Pass the same rows, or choose another run.name"
        raise DataError(format_error(_argument(split), problem, remedy))


def _name_arguments(error: DataError, kept: Mapping[str, Path]) -> DataError:
    """Return an error with the argument in the place of the file that keeps its rows."""
    messages = list(error.messages)
    for split, file in kept.items():
        messages = [message.replace(str(file), _argument(split)) for message in messages]
    return DataError(*messages)


def _argument(split: str) -> str:
    return "data" if split == "train" else split


def _remove(folder: Path, files: Iterable[Path]) -> None:
    """Remove the folder of a run that has not started, as far as this module has filled it."""
    for file in (*files, folder / LOCK):
        file.unlink(missing_ok=True)
    for each in (folder / DATA, folder):
        if each.is_dir() and not any(each.iterdir()):
            each.rmdir()


def _data_overrides(files: Mapping[str, str]) -> list[str]:
    named = _with_files({}, files)
    return ["data=files", *(_override(f"data.{split}", file) for split, file in named.items())] if files else []


def _with_files(data: Mapping[str, Any], files: Mapping[str, str]) -> Document:
    """Return the keys of a source with the files of splits; `validation.clean` is one of several sets."""
    named = dict(data)
    for split, file in files.items():
        parent, _, name = split.partition(".")
        others = named.get(parent)
        named[parent] = {**(others if isinstance(others, Mapping) else {}), name: file} if name else file
    return named


def _as_overrides(settings: Mapping[str, object], prefix: str = "") -> list[str]:
    """Return settings by name as overrides; nested dicts become dotted keys."""
    texts: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            texts += _as_overrides(value, f"{prefix}{key}.")
        else:
            texts.append(_override(f"{prefix}{key}", value))
    return texts


def _override(key: str, value: object) -> str:
    return f"{key}={_written(value)}"


def _written(value: object) -> str:
    """Return a value in Hydra's syntax; texts are quoted, so that nothing in them has a meaning."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    return as_text(f"={value}")[1:] if str(value) else "''"


def _scores(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the loss and the metrics of a stored evaluation."""
    return {name: value for name, value in evaluation.items() if isinstance(value, float)}
