"""Files of an exported agent besides weights and tokenizer: how its prompts are written and how it samples.

`generation_config.json` makes other programs sample as the agent was trained to; `collm_agent.json` holds everything
that a server needs to write the same prompts as in training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from collm.models.loading import resolve_path

_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")


def generation_config(
    record: dict[str, Any], tokenizer: Tokenizer, vocabulary_size: int, allowed_ids: Iterable[int] | None
) -> Any:
    """The `GenerationConfig` with which `generate` of transformers samples as in training.

    Args:
        record: The agent, as `Policy.record` gives it.
        tokenizer: Its tokenizer.
        vocabulary_size: Number of logits of its model, of which the tokenizer may know fewer.
        allowed_ids: The only tokens it may write; None for all.
    """
    forbidden = None
    if allowed_ids is not None:
        forbidden = sorted(set(range(vocabulary_size)) - set(allowed_ids))
    return GenerationConfig(
        do_sample=True,
        temperature=record["temperature"],
        top_p=record["top_p"],
        top_k=record["top_k"],  # 0 and not nothing, which means 50
        max_new_tokens=record["max_new_tokens"],
        min_new_tokens=record["min_new_tokens"] or None,
        eos_token_id=record["end_ids"],
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=forbidden,
    )


def base_name(path: str) -> str:
    """Name of the model at `path` in an export: its hub name, or the last part of its folder."""
    return Path(path).name if Path(resolve_path(path)).is_dir() else path


def copy_model(path: str, folder: str | Path) -> None:
    """Copy the model at `path`, a local folder or a built-in name, with its tokenizer."""
    Path(folder).mkdir(parents=True)
    for pattern in _MODEL_FILES:
        for file in Path(resolve_path(path)).glob(pattern):
            shutil.copyfile(file, Path(folder, file.name))


def make_readable(folder: str | Path) -> None:
    """Let everybody read the files in `folder`; safetensors writes them for their owner alone."""
    for parent, _, names in os.walk(folder):
        os.chmod(parent, 0o755)
        for name in names:
            os.chmod(Path(parent, name), 0o644)
