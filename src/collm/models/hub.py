"""The Hugging Face hub and its libraries: whether a model can be had at all, and which bars are shown meanwhile."""

from __future__ import annotations

from functools import cache

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils.logging import disable_progress_bar

from collm.errors import ConfigurationError

PATIENCE = 5  # seconds


def check_hub(name: str) -> None:
    """Refuse a model that is not in the local cache while the hub does not answer; the libraries try for minutes.

    Raises:
        ConfigurationError: Says what is missing and how to mend it.
    """
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    if reason := _silence_of_hub():
        raise ConfigurationError(
            f"{name!r} is not in the local cache, and the hub, {constants.ENDPOINT}, does not answer ({reason}). "
            "Connect to the network, or download the model elsewhere and give its local folder."
        )


@cache
def _silence_of_hub() -> str:
    """Why the hub does not answer; empty if it does, whatever it says."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of httpx or, in older versions, of requests
        return type(error).__name__
    return ""


def silence_bars() -> None:
    """Show no bars while weights load or are written: one for each network says nothing. Those of downloads stay."""
    downloads = not are_progress_bars_disabled()
    disable_progress_bar()  # of transformers, and with them those of downloads
    if downloads:
        enable_progress_bars()
