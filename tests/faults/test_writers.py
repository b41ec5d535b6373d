"""Every call in the package that changes the disk goes through `atomic_io`, or stands in a list with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainer

PACKAGE = Path(trainer.__file__).parent
STAGED = "writes into a folder that atomic_io, or the stage of an export, puts in place when it is complete"
SCRATCH = "writes into a temporary folder that is removed when the verb ends"
REPLACED = "writes into a file that atomic_io puts in place when it is complete"
LOG = "appends to a log, whose incomplete last line readers ignore"
ALLOWED = {
    "builders/checkpointed.py:save_model": STAGED,
    "checkpoint/lock.py:_lock": "notes the process that holds the lock; the lock holds without it",
    "checkpoint/lock.py:_open_locked": "creates the empty lock file",
    "checkpoint/lock.py:require_shared": "creates an empty file that other machines must see, and removes it",
    "commands/out_of_fold.py:_write_predictions": REPLACED,
    "commands/predict.py:_predict": SCRATCH,
    "commands/row_inputs.py:_draw": "writes into memory",
    "commands/run_folders.py:_create": "creates the run folder before anything else",
    "commands/run_folders.py:_check_creation": "creates a folder to see that it can, and removes it",
    "commands/run_folders.py:discard_unless_started": "removes the folder of a run that never started",
    "commands/sweep_jobs.py:run_in_processes": SCRATCH,
    "commands/sweep_jobs.py:_start_process": SCRATCH,
    "commands/sweep_jobs.py:run_job_file": SCRATCH,
    "data/cells.py:encode_png": "writes into memory",
    "data/encode.py:_encode_split": STAGED,
    "data/encode.py:_locked": "creates an empty lock file",
    "data/division.py:divide_rows": STAGED,
    "data/encode.py:_write": STAGED,
    "data/split_cache.py:write_index": STAGED,
    "data/splits.py:SplitWriter": STAGED,
    "data/splits.py:drop_unseen_classes": STAGED,
    "data/splits.py:write_splits": STAGED,
    "divergence.py:write_divergence": STAGED,
    "export/bundle_files.py:_write_golden_tensors": STAGED,
    "export/bundle_files.py:_write_images": STAGED,
    "export/bundle_files.py:_write_scripts": STAGED,
    "export/bundle_files.py:_write_texts": STAGED,
    "export/bundle_files.py:copy_scripts": STAGED,
    "export/bundle_files.py:write_bundle_files": STAGED,
    "export/folder.py:_locked": "creates the export folder",
    "export/folder.py:link": STAGED,
    "export/folder.py:publish_files": "moves a complete stage into the export folder, the manifest last",
    "export/folder.py:remove": "removes artifacts while the export folder has no manifest",
    "export/folder.py:staging": "makes the stage of an export",
    "export/folder.py:write_json": STAGED,
    "export/formats/fp16.py:_find_large_values": SCRATCH,
    "export/formats/fp16.py:write_fp16": STAGED,
    "export/formats/int8.py:Quantization": SCRATCH,
    "export/formats/onnx.py:_export_graph": SCRATCH,
    "export/formats/onnx.py:save_exported": STAGED,
    "export/formats/onnx.py:write_graph": STAGED,
    "export/formats/pt2.py:write_pt2": STAGED,
    "export/formats/torchscript.py:save_trace": STAGED,
    "export/formats/weights.py:save_library": STAGED,
    "export/formats/weights.py:write_pth": STAGED,
    "export/formats/weights.py:write_safetensors": STAGED,
    "export/readme.py:write_readme": STAGED,
    "distributed/launch.py:_start": SCRATCH,
    "distributed/launch.py:launch": SCRATCH,
    "loop.py:save_checkpoint": "passes a checkpoint to the store, which uses atomic_io",
    "model/pretrained_folder.py:_save_head": STAGED,
    "model/pretrained_folder.py:_write_json": STAGED,
    "model/pretrained_folder.py:save": STAGED,
    "model/pretrained_folder.py:save_tokenizer": STAGED,
    "model/pretrained_folder.py:write_sentence_modules": STAGED,
    "predict/files.py:_open_parquet": STAGED,
    "predict/neighbors.py:Corpus": SCRATCH,
    "predictions.py:PredictionsWriter": REPLACED,
    "predictions.py:predictions_writer": REPLACED,
    "distributed/environment.py:write_note": SCRATCH,
    "report/events.py:JsonLines": LOG,
    "report/logs.py:_FileHandler": LOG,
    "report/logs.py:_file_handler": LOG,
    "ownership.py:_user_key": "links the complete key into place",
    "report/tensorboard.py:TensorBoard": LOG,
    "report/trackers.py:Swanlab": "creates the folder of a tracker's own files",
    "report/trackers.py:Tracker": "creates the folder of a tracker's own files",
    "row_recorder.py:written_by_first": SCRATCH,
    "signals.py:print_at_once": "writes to the screen",
    "commands/doctor.py:_check_training": SCRATCH,
    "commands/doctor.py:_write_rows": SCRATCH,
    "commands/doctor_checks.py:_check_lock": "changes nothing: locks a temporary file",
    "commands/doctor_checks.py:check_compiler": SCRATCH,
    "commands/doctor_checks.py:check_file_system": "writes a temporary file, which is removed",
    "commands/doctor_checks.py:check_folder": "writes a temporary file, which is removed",
    "commands/doctor_checks.py:check_shared_memory": "writes a temporary file, which is removed",
    "data/frames.py:write_table": REPLACED,
    "export/folder.py:write_manifest": STAGED,
    "library.py:Run": SCRATCH,
    "library.py:_remove": "removes the tables of a run that has not started",
    "library.py:_train_on_tables": SCRATCH,
}
"""Functions and classes that change the disk without `atomic_io`, each with the reason."""

READING = {"shutil.which", "shutil.get_terminal_size"}
CHANGING = {
    *("os.replace", "os.rename", "os.remove", "os.unlink", "os.rmdir", "os.mkdir", "os.makedirs", "os.link"),
    *("os.symlink", "os.truncate", "os.ftruncate", "os.write", "os.pwrite", "os.chmod", "os.mkfifo", "os.removedirs"),
    *("json.dump", "pickle.dump", "torch.save", "np.save", "np.savez", "np.savez_compressed", "np.savetxt"),
}
METHODS = {
    *("write_text", "write_bytes", "touch", "mkdir", "rmdir", "unlink", "rename", "symlink_to", "hardlink_to", "chmod"),
    *("save", "save_pretrained", "save_to_disk", "to_csv", "to_json", "to_parquet", "savefig", "tofile", "dump"),
}
FUNCTIONS = {
    *("save_file", "SummaryWriter", "NamedTemporaryFile", "TemporaryDirectory", "mkdtemp", "mkstemp", "FileHandler"),
    *("ParquetWriter", "write_table", "new_stream", "new_file", "OSFile", "SplitWriter", "_FileHandler"),
}


def name_of(call: ast.Call) -> str:
    """Return the name of what is called: `os.rename`, `.unlink` of any object, or `save_file`."""
    if isinstance(call.func, ast.Attribute):
        owner = call.func.value
        return f"{owner.id if isinstance(owner, ast.Name) else ''}.{call.func.attr}"
    return call.func.id if isinstance(call.func, ast.Name) else ""


def opens_for_writing(call: ast.Call, name: str) -> bool:
    """Return whether a call of `open` creates or changes a file; a mode that is no constant counts."""
    if name == "os.open":
        return any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT")) and "devnull" not in (
            ast.unparse(call)
        )
    place = 1 if name in ("open", "io.open", "os.fdopen") or name.endswith(("FileIO", "ZipFile")) else 0
    modes = [argument.value for argument in call.keywords if argument.arg == "mode"] + call.args[place : place + 1]
    constants = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    return any(set(mode) & set("wxa+") and set(mode) <= set("rwxabt+") for mode in constants)


def changes_disk(call: ast.Call) -> bool:
    """Return whether a call creates, changes, renames or removes files."""
    name = name_of(call)
    owner, _, method = name.rpartition(".")
    if method in ("open", "fdopen", "FileIO", "ZipFile"):
        return opens_for_writing(call, name)
    if owner in ("shutil", "tempfile"):
        return name not in READING
    if owner == "atomic_io":
        return False
    if method == "replace" and owner != "os":  # of a path, which has one argument; that of a text has two
        return len(call.args) == 1 and not call.keywords
    is_method = isinstance(call.func, ast.Attribute) and method in METHODS
    return name in CHANGING or is_method or method in FUNCTIONS


def functions(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call with the name of the outermost function or class that contains it."""
    for node in ast.iter_child_nodes(tree):
        inside = (*names, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else names
        if isinstance(node, ast.Call):
            yield (names[0] if names else ""), node
        yield from functions(node, inside)


def writers() -> set[str]:
    return {
        f"{path.relative_to(PACKAGE)}:{name}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "files" / "atomic_io.py"
        for name, call in functions(ast.parse(path.read_text(encoding="utf-8")))
        if changes_disk(call)
    }


def test_every_writer_is_atomic_or_has_a_reason() -> None:
    assert writers() == ALLOWED.keys()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "open(path, 'w')",
            "path.open('ab')",
            "open(path, mode='r+')",
            "os.open(path, os.O_CREAT)",
            "io.open(p, 'x')",
        ),
        *(
            "path.write_text(text)",
            "folder.mkdir()",
            "os.replace(a, b)",
            "path.replace(target)",
            "shutil.rmtree(a)",
        ),
        *(
            "os.unlink(path)",
            "tempfile.mkdtemp()",
            "TemporaryDirectory()",
            "np.savez(path, a=a)",
            "torch.save(a, b)",
        ),
        *("model.save_pretrained(folder)", "rows.save_to_disk(folder)", "onnx.save(model, path)", "json.dump(a, file)"),
        *("SummaryWriter(folder)", "save_file(tensors, path)", "Path(a, b).touch()", "make().rename(target)"),
    ],
)
def test_writers_are_recognized(text: str) -> None:
    (call, *_) = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    assert changes_disk(call)


@pytest.mark.parametrize(
    "text", ["open(path)", "path.open('rb')", "text.replace('a', 'b')", "json.dumps(a)", "os.open(path, os.O_RDONLY)"]
)
def test_readers_are_not_taken_for_writers(text: str) -> None:
    (call,) = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    assert not changes_disk(call)
