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
from collm.models.policy_spec import PolicySpec

_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")


def agent_record(
    agent_id: str, spec: PolicySpec, tokenizer: Tokenizer, eos_ids: Iterable[int], base: str
) -> dict[str, Any]:
    """How the prompts of an agent are written and how it samples, as plain data.

    Args:
        agent_id: Its name in the environment.
        spec: Its settings.
        tokenizer: Its tokenizer.
        eos_ids: Tokens that end its responses.
        base: Where its weights began: a hub name, or the last part of a folder.
    """
    ends = sorted(eos_ids)
    return {
        "agent_id": agent_id,
        "base": base,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "context": spec.max_tokens(),
        "max_new_tokens": spec.max_new_tokens,
        "min_new_tokens": spec.min_new_tokens,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "top_k": spec.top_k,
        "end_ids": ends,
        "ends": [tokenizer.convert_ids_to_tokens(end) for end in ends],
        "chat_template": spec.chat_template,
        "template_arguments": spec.template_arguments,
        "system_prompt": spec.system_prompt,
        "control_tokens_in_data": spec.control_tokens_in_data,
        "allowed_words": spec.allowed_words,
    }


def generation_config(record: dict[str, Any], tokenizer: Tokenizer, allowed_ids: Iterable[int] | None) -> Any:
    """The `GenerationConfig` with which `generate` of transformers samples as in training.

    Args:
        record: The agent, as `agent_record` makes it.
        tokenizer: Its tokenizer.
        allowed_ids: The only tokens it may write; None for all.
    """
    forbidden = None
    if allowed_ids is not None:
        forbidden = sorted(set(tokenizer.get_vocab().values()) - set(allowed_ids))
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
