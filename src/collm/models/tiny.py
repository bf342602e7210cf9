"""The models `tiny`, `tiny_house` and `tiny_games`: small Llamas whose byte-level tokenizer has the words of the games.

The quickstart and the tests run on them. This file creates configuration, tokenizer and random weights. The weights
that ship with the package were trained by behaviour cloning: `tiny` on StrBuild
(`configs/experiments/clone_str_build.yaml`), `tiny_house`, starting from `tiny`, on HouseBuild
(`clone_house_build.yaml`), and `tiny_games`, with a tokenizer of its own, on ResourceGathering
(`clone_resource_gathering.yaml`).
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from collm.models.random_model import write_model

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = (
    "/setblock /fill /kill air oak_planks stone white_concrete obsidian stone_stairs stone_bricks planks cobblestone "
    "glass_pane oak_log sand agent builder_1 builder_2 builder_3 of : turn rejected [ ] value last reward score layer "
    "spiders damage limit left hp target world y z x - none"
)
GAME_WORDS = (
    "go take tell say probe fill agent turn at know see wood stone iron clay rubble pillar fake water planks crossing "
    "gap spare : , . -"
)


def build_tokenizer(words: str = WORDS, numbers: int = 10) -> PreTrainedTokenizerFast:
    """A byte-level BPE: it encodes any text; words of the games, small numbers and grid cells are one token each.

    Args:
        words: Words that are one token each.
        numbers: Number of numbers from 0 on that are one token each, 10 to 100.
    """
    tokenizer = Tokenizer(models.BPE())
    number = "[0-9]" if numbers == 10 else "[0-9]{1,2}"
    pieces = Regex(rf" ?{number}|[#.+x]|\n| ?[^\s0-9#.+\n]+|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [form for word in words.split() for form in (word, " " + word)] * 2
    corpus += [form for value in range(numbers) for form in (f"{value}", f" {value}")] * 2
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = 2048
    return fast


def build_tiny(
    folder: str | Path,
    hidden_size: int = 64,
    num_layers: int = 3,
    num_heads: int = 4,
    context: int = 2048,
    seed: int = 0,
    words: str = WORDS,
    numbers: int = 10,
    initializer_range: float = 0.05,
) -> None:
    """Write configuration, tokenizer and random weights as a Hugging Face folder; see `build_tokenizer`."""
    write_model(
        folder,
        build_tokenizer(words, numbers),
        LlamaConfig,
        seed,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 8 * 8,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
    )
