"""`trainer push`: send the artifacts of a run and its model card to a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import Final

from trainer.commands.card import FILL_IN
from trainer.commands.run_folders import find_artifacts, find_run_folder, run_argument
from trainer.config.jobs import PushJob
from trainer.display import counted, displayable, print_lines
from trainer.documents import file_entries, read_export_manifest, read_text
from trainer.errors import CheckpointError, ConfigError, format_error
from trainer.export.folder import is_verifiable, verify
from trainer.layout import CARD, EXPORT, EXPORT_MANIFEST, GOLDEN_ROWS, Document

_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def run(job: PushJob, config: Document) -> None:
    """Check and list the files, then send them in one commit.

    Raises:
        ConfigError: The repository has no valid name, or the hub cannot be used.
        CheckpointError: There is no card, or a file of the artifacts is not what was proved.
    """
    if job.to is None or not _REPOSITORY.fullmatch(job.to):
        raise ConfigError(format_error("to", "must be owner/name", "Name a repository: to=owner/name", value=job.to))
    folder = find_run_folder(job.run)
    files = _files_to_send(folder)
    for name, path in files.items():
        print(displayable(f"{path.stat().st_size:>12,}  {name}", keep_lines=False))
    for note in _notes(files):
        print_lines(f"note: {note}")
    if job.dry_run:
        print_lines(f"dry run: nothing was sent to {job.to}.")
        return
    print(displayable(_send(job.to, files, private=job.private)))


def _files_to_send(folder: Path) -> dict[str, Path]:
    """Return the card and all files of the artifacts, by their names in the repository."""
    artifacts = find_artifacts(folder)
    card = folder / CARD
    if not card.is_file():
        remedy = f"Write it: trainer card {quote(f'run={folder}')}"
        raise CheckpointError(format_error(str(card), "is missing", remedy))
    remedy = f"Export again: trainer export {run_argument('run', folder)} force=true"
    messages = [
        format_error(str(artifacts / name), fault, remedy) for name, fault in verify(artifacts).items() if fault
    ]
    if not messages and not is_verifiable(artifacts):
        messages = [format_error(str(artifacts / EXPORT_MANIFEST), "has no checksum of itself", remedy)]
    if messages:
        raise CheckpointError(*messages)
    manifest = read_export_manifest(artifacts)
    assert manifest is not None, "it was verified"
    names = [*dict.fromkeys(entry["file"] for entry in file_entries(manifest)), EXPORT_MANIFEST]
    return {CARD: card, **{f"{EXPORT}/{name}": artifacts / name for name in names}}


def _notes(files: dict[str, Path]) -> list[str]:
    """Return what a person should know before the files are seen by others."""
    notes = []
    card = files[CARD]
    if count := read_text(card, "Write it again: trainer card").count(FILL_IN):
        notes.append(f"{card}: {counted(count, 'line', 'is')} still to be filled in.")
    if card.stat().st_mtime < files[f"{EXPORT}/{EXPORT_MANIFEST}"].stat().st_mtime:
        notes.append(f"{card}: is older than the artifacts.")
    if f"{EXPORT}/{GOLDEN_ROWS}" in files:
        notes.append(f"{EXPORT}/{GOLDEN_ROWS}: contains real rows of the data; export.golden=0 leaves them out.")
    return notes


def _send(repository: str, files: dict[str, Path], *, private: bool) -> str:
    """Send files in one commit, to a new repository if there is none, and return the address of the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from trainer.hub import is_reachable

    if get_token() is None:
        raise ConfigError("push: there is no token for the hub. Set HF_TOKEN, or log in: hf auth login")
    if not is_reachable():
        problem = "the hub cannot be reached"
        remedy = "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise ConfigError(format_error("push", problem, remedy, value=constants.ENDPOINT))
    disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, path) for name, path in files.items()]
        commit = api.create_commit(repository, operations, commit_message="Add a model and its card")
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        remedy = "Use a token that may write there: hf auth login" if refused else "Try again later"
        problem = f"the hub refused with status {error.response.status_code}: {error.server_message or 'no reason'}"
        raise ConfigError(format_error("to", problem, remedy, value=repository)) from error
    except Exception as error:  # any network error; its type depends on the library behind the session
        cause = error.__cause__ or error
        problem = f"the files could not be sent ({type(cause).__name__}: {cause})"
        raise ConfigError(format_error("to", problem, "Send them again", value=repository)) from error
    return commit.commit_url
