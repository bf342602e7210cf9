"""The model `relay`: a language model of 30 thousand weights, with a tokenizer, for studies without pretraining.

Its vocabulary are the words of the relay. Text in square brackets, with which critics mark who speaks, is dropped, so
that a history is two tokens per agent and turn and one for feedback. The model ships as a configuration without
weights. Every run initializes them at random: token embeddings are larger than position embeddings, and all words are
equally likely at first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import GPT2Config, PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from collm.models.random_model import write_model

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|unknown|>"]
LARGEST_ALPHABET = 16


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the relay."""
    numbers = range(LARGEST_ALPHABET)
    words = [*SPECIAL_TOKENS, *(f"x{n}" for n in numbers), *(f"a{n}" for n in numbers), "bad", "ok"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\[[^\]]*\]"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", unk_token="<|unknown|>"
    )


def build_relay(folder: str | Path) -> None:
    """Write configuration and tokenizer as a Hugging Face folder."""
    write_model(
        folder,
        build_tokenizer(),
        GPT2Config,
        seed=None,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_inner=96,
        n_positions=192,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )


def initialize(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights with which activations keep their scale through the layers; the head is 0."""
    embeddings: Any = model.transformer
    nn.init.normal_(embeddings.wte.weight, std=0.5)
    nn.init.normal_(embeddings.wpe.weight, std=0.1)
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):  # weights [in, out]
            residual = (2 * model.config.n_layer) ** -0.5 if name.endswith("c_proj") else 1.0
            nn.init.normal_(module.weight, std=residual * module.weight.shape[0] ** -0.5)
    nn.init.zeros_(model.lm_head.weight)
    return model
