"""Downloads from the Hugging Face hub: selected files of one commit, verified by their checksums."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars, logging

from stages.common.runtime.exceptions import UserError


@contextmanager
def _report_hub_errors(hub_id: str) -> Iterator[None]:
    """Turn errors in the communication with the hub into one line that says what to do."""
    hub = constants.ENDPOINT
    try:
        yield
    except Exception as error:  # Its HTTP client, and answers that are not from a hub, raise errors of many kinds.
        match error:
            case HFValidationError():
                problem = f"{hub_id!r} is not a model id of the hub, such as monologg/kobert"
            case RepositoryNotFoundError():  # The hub does not tell whether a model is missing or private.
                problem = f"{hub} has no model {hub_id!r}, or hides it: check the id, or log in with `hf auth login`"
            case HfHubHTTPError() if error.response.status_code in (401, 403):
                problem = f"{hub} refuses access to {hub_id!r}: log in with `hf auth login`, or correct HF_TOKEN"
            case HfHubHTTPError():
                problem = f"{hub} answers with status {error.response.status_code}: try again later"
            case _:
                problem = (
                    f"{hub_id!r} cannot be read from {hub} ({str(error) or type(error).__name__}): check the network "
                    "and HF_ENDPOINT and run again, or download the model elsewhere and set base_model.folder"
                )
        raise UserError(f"base_model.hub_id: {problem}") from error


def list_files(hub_id: str, revision: str) -> list[str]:
    """List the names of the files at the top level of a model at a commit.

    Raises:
        UserError: There is no such model, `revision` is not the full hash of a commit, or the hub does not answer.
    """
    api, name = HfApi(), revision or "main"
    with _report_hub_errors(hub_id):
        try:
            info = api.model_info(hub_id, revision=name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except RevisionNotFoundError:
            name = "main"
            info = api.model_info(hub_id, revision=name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if info.sha != revision:
        raise UserError(
            f"base_model.revision is {revision!r}, but must be the full hash of a commit of {hub_id}; "
            f"{name} is now at {info.sha}"
        )
    return [file.rfilename for file in info.siblings or [] if "/" not in file.rfilename]


def list_sizes(hub_id: str, revision: str) -> dict[str, int]:
    """Return the size in bytes of each file at the top level of a model at a commit."""
    with _report_hub_errors(hub_id):
        entries = HfApi().list_repo_tree(hub_id, revision=revision)
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def download(hub_id: str, revision: str, names: list[str], folder: Path) -> None:
    """Download files of a commit into `folder`, or copy them from the cache of huggingface_hub (HF_HOME).

    Raises:
        UserError: A file could not be downloaded, or its checksum is not that of the hub.
    """
    logging.set_verbosity_error()  # HF_HUB_VERBOSITY is read only when the library is imported.
    if not sys.stderr.isatty():
        disable_progress_bars()
    for force_download in (False, True):  # The second time, damaged files in the cache are downloaded again.
        with _report_hub_errors(hub_id):
            snapshot = snapshot_download(hub_id, revision=revision, allow_patterns=names, force_download=force_download)
        for name in names:
            shutil.copyfile(Path(snapshot) / name, folder / name)
        with _report_hub_errors(hub_id):
            verification = HfApi().verify_repo_checksums(hub_id, revision=revision, local_dir=folder)
        names = [mismatch["path"] for mismatch in verification.mismatches]
        if not names:
            return
    raise UserError(f"base_model.hub_id: wrong checksum of {', '.join(names)}, downloaded twice: try again later")
