"""Sampling and update kernels on CUDA: against the processor, against plain modules and against themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from gpu_device import DEVICE, on_device, skip_without_cuda
from peft import LoraConfig
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from actors import sampled
from architectures import ARCHITECTURES
from collm.algorithms.optimizers import fused
from collm.inference.actors import Actors
from collm.kernels import shared_prefix as prefixes
from collm.kernels.layers import needed_at
from collm.models import scores
from collm.models.backbone import Backbone
from collm.models.loading import load_tokenizer
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.random_model import write_model
from collm.packing import SequenceBatch, TokenSequence, pad_sequences
from collm.runtime.profiler import Meter
from collm.runtime.seeding import child_generator

skip_without_cuda()
pytestmark = pytest.mark.gpu

PROMPTS = [[7, 8, 9, *range(14, 34)], [5, 6], [7, 8, 9, *range(14, 32), 3], [7, 8, 9, *range(20, 30)]]


@pytest.fixture(scope="module")
def folders(tiny_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small Llama, which is sampled from copies at full precision, and a Qwen3 whose queries share keys."""
    grouped = tmp_path_factory.mktemp("models") / "grouped"
    write_model(
        grouped,
        load_tokenizer(tiny_folder),
        Qwen3Config,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return {"llama": tiny_folder, "grouped": str(grouped)}


def make(folder: str, dtype: str, device: torch.device, lora: bool, **given: object) -> Policy:
    backbone = Backbone(folder, dtype)
    if lora:
        torch.manual_seed(1)
        backbone.add_adapter("a1", 4, 8.0, 0.0)
        for weight in backbone.adapter_parameters("a1"):
            nn.init.normal_(weight, std=0.1)  # a fresh adapter does nothing
    backbone.to(device)
    spec = PolicySpec(path=folder, dtype=dtype, max_new_tokens=24, lora_rank=4 if lora else 0, **given)
    return Policy("a1", spec, backbone, "a1" if lora else None)


def dialogues(policy: Policy, greedy: bool = False) -> list[TokenSequence]:
    """Two turns of every prompt with the states of the first one kept, as rows that score what was written."""
    chance = torch.Generator(DEVICE if policy.device.type == "cuda" else "cpu").manual_seed(3)
    actors = Actors({policy.agent_id: policy})
    with actors.serving(0, keep_cache=True):
        (first,) = actors.sample({policy.agent_id: PROMPTS}, chance, greedy).values()
        longer = [[*action.prompt_ids, *action.token_ids, 40, 41, 42] for action in first]
        (second,) = actors.sample({policy.agent_id: longer}, chance, greedy).values()
    rows = []
    for row, (one, two) in enumerate(zip(first, second, strict=True)):
        turns = [-1] * len(one.prompt_ids) + [0] * len(one.token_ids) + [-1] * 3 + [1] * len(two.token_ids)
        unscored = [0.0] * len(one.prompt_ids)
        old = [*unscored, *one.log_probs, 0.0, 0.0, 0.0, *two.log_probs]
        rows.append(TokenSequence(row, [*two.prompt_ids, *two.token_ids], turns, old))
    return rows


ENGINES = pytest.mark.parametrize("engine", ["collm", "transformers"])


@ENGINES
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "grouped"])
def test_recorded_log_probabilities_are_those_of_the_update(
    folders: dict[str, str], name: str, dtype: str, lora: bool, engine: str
) -> None:
    policy = make(folders[name], dtype, DEVICE, lora, engine=engine, temperature=0.8)
    rows = dialogues(policy)
    batch = pad_sequences(rows, 0, DEVICE)
    log_probs, entropies = policy.log_probs(batch)
    assert on_device([log_probs, entropies])
    assert log_probs.dtype == torch.float32
    mask = batch.action_mask
    assert mask.sum() > 60
    drift = (log_probs - batch.old_log_probs)[mask].abs()
    assert drift.max() < (1e-4 if dtype == "float32" else 0.25)
    assert drift.mean() < (1e-5 if dtype == "float32" else 0.05)
    assert entropies[mask].mean() > 0.5
    (log_probs[mask].sum()).backward()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    assert gradients
    assert on_device(gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)


@ENGINES
@pytest.mark.parametrize("name", ["llama", "grouped"])
def test_the_likeliest_tokens_are_those_of_the_processor(folders: dict[str, str], name: str, engine: str) -> None:
    here = dialogues(make(folders[name], "float32", DEVICE, True, engine=engine), greedy=True)
    there = dialogues(make(folders[name], "float32", torch.device("cpu"), True), greedy=True)
    assert [row.ids for row in here] == [row.ids for row in there]
    for one, other in zip(here, there, strict=True):
        assert one.old_log_probs == pytest.approx(other.old_log_probs, abs=1e-3)


@ENGINES
def test_one_seed_is_one_sample(folders: dict[str, str], engine: str) -> None:
    cut = {"top_p": 0.95, "top_k": 50, "trained_policy": "uncut"}
    policy = make(folders["grouped"], "float32", DEVICE, False, engine=engine, **cut)
    assert dialogues(policy) == dialogues(policy)


def test_a_group_that_shares_its_prompt_writes_with_the_probabilities_of_the_update(folders: dict[str, str]) -> None:
    """Enough copies of a long prompt that its states are read once for all of them, from small and larger weights."""
    for name in folders:
        policy = make(folders[name], "float32", DEVICE, False)
        long = list(range(20, 180))
        actions = sampled(policy, [long] * 12 + [[5, 6]] * 2, torch.Generator(DEVICE).manual_seed(0), False)
        rows = [
            TokenSequence(
                row,
                [*action.prompt_ids, *action.token_ids],
                [-1] * len(action.prompt_ids) + [0] * len(action.token_ids),
                [0.0] * len(action.prompt_ids) + list(action.log_probs),
            )
            for row, action in enumerate(actions)
        ]
        batch = pad_sequences(rows, 0, DEVICE)
        log_probs, _ = policy.log_probs(batch)
        assert (log_probs - batch.old_log_probs)[batch.action_mask].abs().max() < 1e-4
        assert len({tuple(action.token_ids) for action in actions[:12]}) > 6


def states_and_gradients(
    lm: PreTrainedModel, batch: SequenceBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    states = lm.base_model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
    states = states.last_hidden_state[batch.action_mask]
    (states * torch.arange(1.0, 1 + states.numel(), device=DEVICE).view_as(states).sin()).sum().backward()
    gradients = {name: weight.grad for name, weight in lm.named_parameters()}
    lm.zero_grad()
    return states.detach(), gradients


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_update_kernels_have_the_gradients_of_plain_modules(architecture: str, lora: bool) -> None:
    torch.manual_seed(1)
    lm = ARCHITECTURES[architecture]()
    if lora:
        lm.add_adapter(LoraConfig(r=3, lora_alpha=6.0, target_modules="all-linear"), "own")
    for name, weight in lm.named_parameters():
        nn.init.normal_(weight, float(("norm" in name or "ln_" in name) and name.endswith("weight")), 0.2)
    lm.to(DEVICE)
    sizes = (9, 14, 5, 14)
    rows = [
        TokenSequence(row, torch.randint(2, 97, (size,)).tolist(), [-1] * (size - 3) + [0] * 3)
        for row, size in enumerate(sizes)
    ]
    batch = pad_sequences(rows, 0, DEVICE)
    expected = states_and_gradients(lm, batch)
    with needed_at(lm, batch.action_mask):
        found = states_and_gradients(lm, batch)
    assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "grouped"])
def test_shared_beginnings_have_the_gradients_of_every_row_alone(
    folders: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "_MIN_SHARED_TOKENS", 6)
    policy = make(folders[name], "float32", DEVICE, True)
    rows = [row for row in PROMPTS for _ in range(2)]
    sequences = [
        TokenSequence(row, ids, [-1] + [place % 3 - 1 for place in range(1, len(ids))]) for row, ids in enumerate(rows)
    ]
    batch = pad_sequences(sequences, 0, DEVICE)
    found = []
    for shared in (True, False):
        policy.backbone.fast_updates = shared
        log_probs, _ = policy.log_probs(batch)
        policy.backbone.activate(policy.adapter)
        log_probs.sum().backward()
        found.append((log_probs.detach(), [weight.grad.clone() for weight in policy.parameters()]))
        policy.backbone.zero_grad()
    assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_chunks_of_logits_are_recomputed_on_the_device(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make(folders["grouped"], "bfloat16", DEVICE, False)
    batch = pad_sequences(dialogues(policy), 0, DEVICE)
    whole, _ = policy.log_probs(batch)
    monkeypatch.setattr(scores, "LOGITS_PER_CHUNK", 4096)
    pieces, entropies = policy.log_probs(batch)
    assert_close(pieces, whole, rtol=0.02, atol=0.02)
    (pieces.sum() + entropies.sum()).backward()
    assert policy.parameters()[0].grad.isfinite().all()


def test_fused_steps_go_on_from_a_state_that_was_in_main_memory() -> None:
    """Two steps are those of torch's plain optimizer, with the state saved, moved and loaded in between."""
    results = []
    for fast in (True, False):
        weight = nn.Parameter(torch.linspace(-1, 1, 7, device=DEVICE))
        state = None
        for _ in range(2):
            optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.1}], foreach=None if fast else False)
            optimizer = fused(optimizer) if fast else optimizer
            assert bool(optimizer.param_groups[0]["fused"]) == fast
            if state is not None:
                optimizer.load_state_dict(state)
            weight.grad = weight.detach().sin()
            optimizer.step()
            state = optimizer.state_dict()
            state["state"] = {
                number: {name: value.cpu() for name, value in entries.items()}
                for number, entries in state["state"].items()
            }
        results.append(weight.detach())
    assert_close(*results)


def test_chance_of_a_device_follows_from_that_of_the_processor() -> None:
    drawn = [
        torch.rand(4, device=DEVICE, generator=child_generator(torch.Generator().manual_seed(seed), DEVICE)).tolist()
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_meter_waits_for_the_device() -> None:
    """The seconds of a product of matrices are in the phase that began it, not in the one that waits for it."""
    meter = Meter()
    meter.synchronize = True
    size = 8192 if DEVICE.type == "cuda" else 512
    big = torch.randn(size, size, device=DEVICE)
    big @ big
    meter.take()
    with meter.phase("work"):
        for _ in range(5):
            big @ big
    with meter.phase("wait"):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    seconds = meter.take().seconds
    assert seconds["work"] > 10 * seconds["wait"]


def test_a_compiled_model_gives_what_the_plain_one_gives(folders: dict[str, str]) -> None:
    if DEVICE.type != "cuda" or shutil.which("gcc") is None:
        pytest.skip("compiling needs CUDA and a C compiler")
    batch = pad_sequences(
        [TokenSequence(row, ids, [-1] + [0] * (len(ids) - 1)) for row, ids in enumerate(PROMPTS)], 0, DEVICE
    )
    lm = AutoModelForCausalLM.from_pretrained(folders["grouped"]).to(DEVICE)
    expected = states_and_gradients(lm, batch)
    lm.model.compile()
    assert_close(states_and_gradients(lm, batch), expected, rtol=1e-3, atol=1e-3)


def test_vllm_shares_the_device(folders: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    policy = make(folders["grouped"], "bfloat16", DEVICE, False, engine="vllm", engine_memory=0.1)
    rows = dialogues(policy)
    batch = pad_sequences(rows, 0, DEVICE)
    log_probs, _ = policy.log_probs(batch)
    assert (log_probs - batch.old_log_probs)[batch.action_mask].abs().mean() < 0.05
