"""Models of the hub: whether it answers is found out once and soon, before transformers tries for a minute."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

from glmtune.console import notice
from glmtune.errors import GlmtuneError

SECONDS_TO_ANSWER = 8


def hub_options(name: str, part: str = "model") -> dict[str, Any]:
    """Return what `from_pretrained` needs for a model of the hub: nothing, or that it takes the copy on this machine.

    Args:
        name: Of the model; a folder needs nothing.
        part: What is loaded of it, for errors.

    Raises:
        GlmtuneError: The hub does not answer, or has no such model, and there is no copy here.
    """
    if Path(name).exists():
        return {}
    has_copy = isinstance(try_to_load_from_cache(name, "config.json"), str)
    problem = _problem_with(name, has_copy)
    if not problem:
        return {}
    if has_copy:
        return {"local_files_only": True}
    raise GlmtuneError(
        f"cannot load the {part} of `{name}`: {problem}, and there is no copy on this machine",
        fix="set `HF_ENDPOINT` to a mirror that you can reach; give `modelscope:OWNER/NAME` where ModelScope has the "
        f"model; or download it where there is a network (`hf download {name} --local-dir FOLDER`), and give the "
        "folder",
    )


def hub_file(name: str, file_name: str, part: str = "model") -> Path | None:
    """Return a small file of a hub's model, downloaded where it is not here; None where the model has no such file."""
    options = hub_options(name, part)
    try:
        return Path(hf_hub_download(name, file_name, **({"local_files_only": is_offline_mode()} | options)))
    except (EntryNotFoundError, HfHubHTTPError, OSError, HTTPError):
        return None  # what else is wrong transformers is about to find out


@lru_cache(maxsize=64)
def _problem_with(name: str, has_copy: bool) -> str:
    """Return why the hub cannot be asked for a model; empty where it answers."""
    if is_offline_mode():
        return "`HF_HUB_OFFLINE` is set"
    try:
        HfApi().model_info(name, timeout=SECONDS_TO_ANSWER)
    except RepositoryNotFoundError:
        if not has_copy:
            raise GlmtuneError(
                f"the hub has no model `{name}`, or you may not see it",
                fix="look at its name, or give a folder; where access is granted on request, log in with "
                "`hf auth login`",
            ) from None
    except (OSError, HTTPError) as error:  # every `HfHubHTTPError` among them
        problem = _told(error)
        if has_copy:
            notice(f"{problem}: the copy of `{name}` on this machine is used")
        return problem
    return ""


def _told(error: Exception) -> str:
    """Return what is wrong with the hub: a program that is no hub answers, too."""
    if isinstance(error, HfHubHTTPError):
        return f"the hub answers with status {error.response.status_code}"
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return f"the hub does not answer ({reason})"
