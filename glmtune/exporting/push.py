"""An exported folder to a hub, into a repository that is private unless it is there already."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from glmtune.errors import GlmtuneError, RunFailure


def check_push(name: str) -> None:
    """Raise unless the hub can be reached and knows the user; so that nothing is computed for no end."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise GlmtuneError(f"`{name}` is no name of a hub's repository", fix="use `OWNER/NAME`") from None
    if is_offline_mode():
        raise GlmtuneError(
            f"cannot push to `{name}`: `HF_HUB_OFFLINE` is set",
            fix="unset it, or leave out `--push` and upload the folder later with `hf upload`",
        )
    if get_token() is None:
        raise GlmtuneError(f"cannot push to `{name}`: you are not logged in to the hub", fix="run `hf auth login`")
    try:
        HfApi().whoami()
    except HfHubHTTPError as error:
        raise GlmtuneError(
            f"cannot push to `{name}`: the hub answers {error.response.status_code}",
            fix="log in with a token that may write: `hf auth login`",
        ) from None
    except (HTTPError, OSError) as error:
        raise GlmtuneError(
            f"cannot push to `{name}`: the hub cannot be reached ({type(error).__name__})",
            fix="leave out `--push` and upload the folder later with `hf upload`",
        ) from None


def push(folder: Path, name: str, files: list[str]) -> str:
    """Upload the named files of a folder; returns the address of the repository."""
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Export by glmtune",
        )
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise RunFailure(
            f"the upload to `{name}` failed: {str(error).splitlines()[0]}",
            where=str(folder),
            fix=f"the folder itself is whole: `hf upload {name} {folder}` tries again",
        ) from None
    return str(repository)
