"""The Hugging Face hub: whether it answers at all. Its libraries try for minutes before they say that it does not."""

from __future__ import annotations

import sys

from huggingface_hub import constants, get_session

PATIENCE = 5  # seconds


def ask_hub() -> None:
    """Where the hub does not answer within seconds, let its libraries use their caches alone, which a line then says.

    What is not in a cache then fails at once.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)  # whatever it says
    except Exception as error:  # of httpx or, in older versions, of requests
        constants.HF_HUB_OFFLINE = True
        print(
            f"{constants.ENDPOINT} does not answer ({type(error).__name__}): only earlier downloads can be used.",
            file=sys.stderr,
        )
