"""Progress bars of the Hugging Face libraries."""

from __future__ import annotations

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils.logging import disable_progress_bar


def silence_bars() -> None:
    """Show no bars while weights load or are written: one for each network says nothing. Those of downloads stay."""
    downloads = not are_progress_bars_disabled()
    disable_progress_bar()  # of transformers, and with them those of downloads
    if downloads:
        enable_progress_bars()
