"""Models of the Hugging Face hub: one commit, the files asked for and no others, each checked when it is here."""

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import logging, validate_repo_id

from stages.common.core.exceptions import UserError
from stages.common.core.files import sha256

logging.set_verbosity_error()  # what goes wrong is told in our one line


def _fault(name: str, error: Exception) -> str:
    """What went wrong between us and the hub, and what to do."""
    hub = constants.ENDPOINT
    match error:
        case RepositoryNotFoundError():  # the hub answers 401 for both, so as not to tell which
            return f"{hub} has no model {name}, or hides it: check the id, or log in with `hf auth login`"
        case RevisionNotFoundError():
            return f"{name} has no such commit, branch or tag"
        case HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{hub} refuses access to {name}: log in with `hf auth login`, or mend HF_TOKEN"
        case HfHubHTTPError():
            return f"{hub} answers with status {error.response.status_code}: try again later"
        case _:
            reason = str(error) or type(error).__name__
            return (
                f"{name} cannot be read from {hub} ({reason}): check the network and HF_ENDPOINT and run again, "
                "or download the model elsewhere and give its folder"
            )


def _model_info(name: str, revision: str) -> ModelInfo:
    return HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)


def _head(name: str, revision: str) -> str:
    """The commit that the user may have meant, in words; or why the hub names none."""
    try:
        return f"{revision} is now at {_model_info(name, revision).sha}"
    except RevisionNotFoundError as error:
        return _fault(name, error) if revision == "main" else _head(name, "main")
    except Exception as error:  # of huggingface_hub, of the HTTP client below it, or of an answer that is not the hub's
        return _fault(name, error)


def find_files(name: str, revision: str) -> dict[str, RepoSibling]:
    """The files at the top of a repository, by name, with their sizes and hashes.

    Raises:
        UserError: `name` is no model id, `revision` is not the hash of one of its commits, or the hub does not answer.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"base_model.name: {name} is not a folder, nor a model id of the hub") from error
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(
            f"base_model.revision is {revision!r}: {name} is not a folder, and a model of the hub needs a full commit "
            f"hash of 40 digits; {_head(name, revision or 'main')}"
        )
    try:
        info = _model_info(name, revision)
    except RevisionNotFoundError as error:
        raise UserError(f"base_model.revision: {name} has no commit {revision}; {_head(name, 'main')}") from error
    except Exception as error:  # see `_head`
        raise UserError(f"base_model: {_fault(name, error)}") from error
    return {file.rfilename: file for file in info.siblings or [] if "/" not in file.rfilename}


def _damage(path: Path, file: RepoSibling) -> str | None:
    """How a file differs from what the hub says of it: by size, then by SHA-256 (LFS) or by git's own hash."""
    if (size := path.stat().st_size) != file.size:
        return f"{size} bytes, the hub says {file.size}"
    expected: str | None
    if file.lfs is not None:
        expected, actual = file.lfs.sha256, sha256(path)
    else:
        expected, actual = file.blob_id, hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest()
    return None if actual == expected else f"hash {actual}, the hub says {expected}"


def download(name: str, revision: str, files: Iterable[RepoSibling], folder: Path) -> None:
    """Put `files` into `folder`, from the cache of the hub's library (HF_HOME) where that has them undamaged.

    Raises:
        UserError: a file did not arrive whole.
    """
    for file in files:
        for afresh in (False, True):  # a damaged file in the cache would be damaged for ever
            try:
                path = Path(hf_hub_download(name, file.rfilename, revision=revision, force_download=afresh))
            except Exception as error:  # see `_head`
                raise UserError(f"base_model: {file.rfilename}: {_fault(name, error)}") from error
            if (damage := _damage(path, file)) is None:
                break
        else:
            raise UserError(f"base_model: {file.rfilename} of {name} arrived twice with {damage}: try again later")
        shutil.copyfile(path, folder / file.rfilename)
