"""Pushing exported agents to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from collm.errors import ConfigurationError, TrainingError
from collm.runtime.files import first_line

_LOGIN = "Log in with `hf auth login` or set HF_TOKEN (and unset HF_HUB_OFFLINE), or leave push_to_hub out."


def check_access(prefix: str) -> None:
    """Refuse a name that is no repository's, and missing access, before anything is trained.

    Raises:
        ConfigurationError: Says what is wrong and how to mend it.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", prefix):
        raise ConfigurationError(f"push_to_hub is {prefix!r}; give an owner and a name, such as me/my-team.")
    try:
        HfApi().whoami()
    except Exception as error:  # of many types: no token, a wrong one, no network
        raise ConfigurationError(
            f"push_to_hub is {prefix!r}, but the hub cannot be used: {first_line(error)}. {_LOGIN}"
        ) from error


def push(folder: Path, names: Sequence[str], prefix: str) -> None:
    """Upload every agent to a repository of its own.

    Args:
        folder: Folder of the exported agents.
        names: Their folders in it.
        prefix: Owner and beginning of the repositories' names.

    Raises:
        TrainingError: An upload failed; the folders stay where they are.
    """
    from huggingface_hub import HfApi

    for name in names:
        repository = f"{prefix}-{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}"
        try:
            url = HfApi().create_repo(repository, private=True, exist_ok=True)
            HfApi().upload_folder(repo_id=repository, folder_path=folder / name)
        except Exception as error:
            raise TrainingError(
                f"{folder / name} could not be pushed to {repository} ({first_line(error)}). The agents are complete "
                f"in {folder}; push them with `hf upload`."
            ) from error
        print(f"pushed to {url} (private)")
