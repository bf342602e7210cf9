"""Every architecture trains on the numbers it samples with: small models with random weights against plain modules.

Dropout and generation defaults are set on purpose: neither may have any effect.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from actors import sampled
from collm.callbacks import resources
from collm.errors import ConfigurationError
from collm.inference.actors import Actors
from collm.inference.transformers_engine import TransformersEngine
from collm.kernels import shared_prefix as prefixes
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.support import works
from collm.packing import TokenSequence, pad_sequences

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
DROPOUT = dict.fromkeys(
    [
        "attention_dropout",
        "attn_pdrop",
        "resid_pdrop",
        "embd_pdrop",
        "hidden_dropout",
        "dropout",
        "activation_dropout",
        "embd_dropout",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "residual_dropout",
    ],
    0.3,
)
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
WINDOW = {"sliding_window": 6}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}

# By `model_type`: what differs from `SHAPE`.
ARCHITECTURES: dict[str, dict] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA_2, "attn_layer_indices": [1]},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": {**OLD, "rotary_dim": 4, "n_ctx": 128},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {**WINDOW, "logit_scale": 0.3},
    "ctrl": {**OLD, "dff": 48},
    "deepseek_v2": {**EXPERTS, **LATENT},
    "deepseek_v3": {**EXPERTS, **LATENT},
    "ernie4_5": {},
    "exaone4": {**WINDOW, "sliding_window_pattern": 2},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4}
    | {"lm_head_multiplier": 0.3},
    "falcon_mamba": {"state_size": 8},
    "gemma": {},
    "gemma2": {**WINDOW, "final_logit_softcapping": 2.0},
    "gemma3_text": WINDOW,
    "glm": {},
    "glm4": {},
    "glm4_moe": EXPERTS,
    "gpt2": OLD,
    "gpt_bigcode": {**OLD, "n_inner": 48},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 6},
    "gpt_neox": {},
    "gpt_oss": {**EXPERTS, **WINDOW},
    "gptj": {**OLD, "rotary_dim": 4},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {**EXPERTS, "logits_scaling": 4.0},
    "granitemoehybrid": {**EXPERTS, **MAMBA_2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2}
    | {"use_mamba_kernels": False},
    "jetmoe": {**EXPERTS, "kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "n_groups": 2, "chunk_size": 4},
    "minicpm3": {**LATENT, "dim_model_base": 16},
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"], "block_size": 4},
    "mistral": {"sliding_window": None},
    "mixtral": EXPERTS,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "ssm_state_size": 8, "mamba_num_heads": 4}
    | {"mamba_head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": EXPERTS,
    "openai-gpt": {**OLD, "afn": "gelu"},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": None},
    "phimoe": EXPERTS,
    "qwen2": {},
    "qwen2_moe": EXPERTS,
    "qwen3": {},
    "qwen3_5_text": DELTA,
    "qwen3_moe": EXPERTS,
    "qwen3_next": {**EXPERTS, **DELTA},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]}
    | {"logits_soft_cap": 2.0},
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "xlstm": {"num_heads": 2, "num_blocks": 2, "embedding_dim": 32, "chunk_size": 4, "output_logit_soft_cap": 2.0},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1]}
    | {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "chunk_size": 4, "num_mem_blocks": 1}
    | {"adapter_rank": 4, "attention_head_dim": 16, "attention_hidden_size": 64},
}
EMBEDDED = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
# What samples: the others are read by the embedded decoder or by the decode loop with a key/value cache.
BY_GENERATE = [
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "lfm2",
    "mamba",
    "mamba2",
    "minimax",
    "nemotron_h",
    "openai-gpt",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba2",
]
SCALED_HEADS = [
    "cohere",
    "cohere2",
    "falcon_h1",
    "gemma2",
    "granite",
    "granitemoe",
    "minicpm3",
    "nanochat",
    "recurrent_gemma",
    "xlstm",
]
# Whose plain forward pass, in older versions of transformers, differs by a few thousandths with the length of a row.
ROUGH = ("nemotron_h", "zamba2")
DEFAULTS = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 2.0,
    "suppress_tokens": list(range(2, 60)),
    "begin_suppress_tokens": list(range(60, 80)),
    "bad_words_ids": [[80], [81, 82]],
    "sequence_bias": [[[90], 10.0]],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": (1, 5.0),
    "guidance_scale": 3.0,
    "num_beams": 3,
    "length_penalty": 2.0,
    "early_stopping": True,
    "min_p": 0.5,
    "typical_p": 0.3,
    "epsilon_cutoff": 0.02,
    "eta_cutoff": 0.02,
    "top_k": 2,
    "top_p": 0.3,
    "temperature": 0.1,
    "do_sample": True,
    "min_length": 20,
    "max_length": 3,
    "max_time": 1e-9,
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "cache_implementation": "static",
    "prompt_lookup_num_tokens": 2,
    "use_cache": False,
    "eos_token_id": 1,
}
PROMPTS = [[7, 8, 9, 10, 11], [20, 21, 22, 23, 24, 25, 26, 27, 28], [7, 8, 9, 10, 11], [30, 31]]
TEMPERATURE = 0.8


def tiny_model(kind: str) -> PreTrainedModel:
    """A model with random weights large enough that tokens differ in their logits."""
    if kind not in CONFIG_MAPPING_NAMES:
        pytest.skip(f"this version of transformers has no {kind}")
    options = {**DROPOUT, **SHAPE, **ARCHITECTURES[kind]}
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    for module in lm.modules():
        if isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
            nn.init.normal_(module.weight, std=0.25)
    lm.generation_config = GenerationConfig()
    for name, value in DEFAULTS.items():  # one by one, as they contradict each other
        setattr(lm.generation_config, name, value)
    return lm.eval()


@pytest.fixture(autouse=True)
def _every_shared_token_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_MIN_SHARED_TOKENS", 1)
    monkeypatch.setattr(prefixes, "_MAX_SHARE_COMPUTED", 2.0)


def make_policy(lm: PreTrainedModel, folder: str, monkeypatch: pytest.MonkeyPatch, **options: object) -> Policy:
    """A policy over `lm`; of the folder's tokenizer only the decoder is used."""
    monkeypatch.setattr("collm.models.backbone.load_model", lambda *args: lm)
    spec = PolicySpec(folder, max_new_tokens=6, temperature=TEMPERATURE, **options)
    return Policy("a1", spec, Backbone(folder, "float32"), None)


def plain_log_probs(lm: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """Of every token of a response, by one plain forward pass over one row."""
    logits = lm.eval()(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0]
    log_probs = (logits[len(prompt) - 1 : -1].float() / TEMPERATURE).log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_sampled_is_what_is_trained(kind: str, tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model(kind)
    policy = make_policy(lm, tiny_folder, monkeypatch)
    backbone, actors = policy.backbone, Actors({"a1": policy})
    assert bool(actors.slower()) == (kind not in EMBEDDED)
    by_generate = isinstance(actors.engines["a1"], TransformersEngine)
    assert by_generate == (kind in BY_GENERATE)
    assert backbone.support.plain_head == (kind not in SCALED_HEADS)

    # sampled tokens have the log-probabilities of the plain model, and those of an update in training mode
    backbone.eval()
    actions = sampled(policy, PROMPTS, torch.Generator().manual_seed(1), greedy=False)
    backbone.train()
    sequences = [
        TokenSequence(
            row, [*action.prompt_ids, *action.token_ids], [-1] * len(action.prompt_ids) + [0] * len(action.token_ids)
        )
        for row, action in enumerate(actions)
    ]
    batch = pad_sequences(sequences, 0, "cpu")
    log_probs, _ = policy.log_probs(batch)
    found = log_probs[batch.action_mask]
    recorded = torch.tensor([value for action in actions for value in action.log_probs])
    plain = torch.cat([plain_log_probs(lm, action.prompt_ids, action.token_ids) for action in actions])
    assert recorded.std() > 0.1
    tolerance = 1e-2 if kind in ROUGH and Version(transformers.__version__) < Version("5.20") else 1e-4
    torch.testing.assert_close(recorded, plain.detach(), atol=tolerance, rtol=0)
    torch.testing.assert_close(found.detach(), plain.detach(), atol=tolerance, rtol=0)

    # so have gradients
    factors = torch.arange(1.0, 1 + len(found)).sin()
    gradients = []
    for values in (found, plain):
        lm.zero_grad()
        (values * factors).sum().backward()
        gradients.append([torch.zeros(()) if one.grad is None else one.grad.clone() for one in lm.parameters()])
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    for own, expected in zip(*gradients, strict=True):
        assert float((own - expected).abs().max()) < tolerance * largest

    # without chance, both engines write the same
    other = make_policy(lm, tiny_folder, monkeypatch, engine="transformers")
    backbone.eval()
    ours, theirs = (sampled(one, PROMPTS, torch.Generator(), greedy=True) for one in (policy, other))
    assert [action.token_ids for action in ours] == [action.token_ids for action in theirs]


def test_there_are_enough_architectures() -> None:
    assert len(set(ARCHITECTURES) & set(CONFIG_MAPPING_NAMES)) >= 40


def test_a_model_that_reads_what_comes_later_is_refused(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **SHAPE, is_decoder=False))
    with pytest.raises(ConfigurationError) as error:
        make_policy(lm, tiny_folder, monkeypatch)
    assert "\n" not in str(error.value)
    assert str(error.value) == (
        f"{tiny_folder!r} is a 'bert' model (BertLMHeadModel), which cannot be trained here: what it makes of a token "
        "depends on tokens behind it or on other sequences; choose another model."
    )


def test_where_positions_are_counted_along_keys_prefixes_are_not_shared(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding between a prefix and what goes on from it would change the numbers of these models, not of others."""
    found = {kind: make_policy(tiny_model(kind), tiny_folder, monkeypatch) for kind in ("mpt", "gpt_neo", "phi")}
    assert [policy.backbone.support.shared_prefixes for policy in found.values()] == [False, False, True]
    how = "sampled by the forward pass of transformers, updates compute common beginnings of sequences once for each"
    assert Actors({"a1": found["mpt"]}).slower() == {"a1": how}


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_generation_defaults_do_not_change_what_is_drawn(
    kind: str, tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for defaults in (DEFAULTS, {"eos_token_id": 1}):
        lm = tiny_model(kind)
        lm.generation_config = GenerationConfig()
        for name, value in defaults.items():
            setattr(lm.generation_config, name, value)
        policy = make_policy(lm, tiny_folder, monkeypatch, engine="transformers", top_k=20)
        policy.backbone.eval()
        actions = sampled(policy, PROMPTS * 5, torch.Generator().manual_seed(1), greedy=False)
        drawn.append([(action.token_ids, action.log_probs) for action in actions])
        assert lm.generation_config.to_dict().get("num_beams") == defaults.get("num_beams")  # exported as it was
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("kind", ["mamba", "granite"])
def test_a_run_trains_and_says_how_it_samples(
    kind: str, tiny_folder: str, tmp_path: Path, fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a game in which several episodes begin with the same prompt."""
    size = AutoConfig.from_pretrained(tiny_folder).vocab_size
    options = {**SHAPE, **ARCHITECTURES[kind], "vocab_size": size, "max_position_embeddings": 1024}
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(tiny_folder, name), folder / name)
    said: list[str] = []
    monkeypatch.setattr(resources, "rank_zero_info", said.append)
    assert fit(f"--model.policy.path={folder}", "--trainer.max_epochs=1") == 0
    how = {
        "mamba": "sampled by `generate` of transformers, updates compute common beginnings of sequences once for each",
        "granite": "sampled by the forward pass of transformers",
    }
    slower = "which is slower: its model is not one of the fastest kinds."
    assert said == [f"{name}: {how[kind]}, {slower}" for name in ("a1", "a2")]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_lack_of_memory_does_not_count_as_an_unsupported_model(error: type[Exception]) -> None:
    def trial() -> bool:
        raise error

    with pytest.raises(error):
        works(trial)


def test_any_other_error_does() -> None:
    assert not works(lambda: {}["logits"])
