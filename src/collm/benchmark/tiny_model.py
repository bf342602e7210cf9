"""A tiny random model with a word-level tokenizer, for measuring the overhead around model calls.

A random model samples arbitrary tokens. With a word-level tokenizer these survive decoding and encoding unchanged, so
all libraries that are compared do the same work; subwords or bytes would be merged into other tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from collm.environments.workload import WORDS

VOCABULARY = 512


def build_tokenizer(folder: str | Path, size: int) -> None:
    """Write a word-level tokenizer with `size` words."""
    words = ["<unk>", "<end>", *WORDS.split()]
    words += [f"word{number}" for number in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>", padding_side="left"
    ).save_pretrained(folder)


def build_benchmark_model(folder: str | Path) -> None:
    """Write a random Llama (4 layers, width 128, 4 heads, 512 tied embeddings; 1.1 M weights) and its tokenizer."""
    build_tokenizer(folder, VOCABULARY)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
