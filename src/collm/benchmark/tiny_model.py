"""A model so small that everything around it shows: random weights, and a vocabulary of whole words.

A text has the same tokens however often it is decoded and read again, so that all who are compared do the same work: a
random model writes any token, and pieces of words or bytes would become others.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from collm.environments.workload import WORDS

VOCABULARY = 512


def build_tokenizer(folder: str | Path, size: int) -> None:
    """Write a tokenizer of `size` whole words."""
    words = ["<unk>", "<end>", *WORDS.split()]
    words += [f"word{number}" for number in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>", padding_side="left"
    ).save_pretrained(folder)


def build_benchmark_model(folder: str | Path) -> None:
    """Write a random Llama (4 layers of 128, 4 heads, 512 words, tied; 1.1 M weights) and its tokenizer."""
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
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
