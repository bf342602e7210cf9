"""Small models with random weights, for tests and benchmarks, and to begin the training of the shipped models from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedTokenizerFast


def write_model(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    config_class: Callable[..., PretrainedConfig],
    seed: int | None = 0,
    **shape: Any,
) -> None:
    """Write configuration, tokenizer and weights as a Hugging Face folder.

    Args:
        folder: The folder.
        tokenizer: Gives the size of the vocabulary, the padding token and the token that ends a response.
        config_class: Configuration of the architecture.
        seed: Seed of the weights; None writes none, and who loads the model initializes them.
        shape: Further arguments of `config_class`.
    """
    config = config_class(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if seed is None:
        config.architectures = [model_class.__name__]
        config.save_pretrained(folder)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
