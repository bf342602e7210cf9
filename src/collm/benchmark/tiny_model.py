"""A tiny random model with a word-level tokenizer, for measuring the overhead around model calls.

A random model samples arbitrary tokens. With a word-level tokenizer these survive decoding and encoding unchanged, so
all libraries that are compared do the same work; subwords or bytes would be merged into other tokens.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from collm.environments.workload import WORDS
from collm.models.random_model import write_model


def build_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with `size` words."""
    words = ["<unk>", "<end>", *WORDS.split()]
    words += [f"word{number}" for number in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>", padding_side="left"
    )


def build_benchmark_model(folder: str | Path, layers: int = 4, heads: int = 4, tied: bool = True) -> None:
    """Write a random Llama (width 128, 512 embeddings; by default 1.1 M weights) and its tokenizer."""
    write_model(
        folder,
        build_tokenizer(512),
        LlamaConfig,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
    )
