"""Log-probabilities of policies against whole matrices of logits, adapters on one backbone, and exported folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3Config, Phi3ForCausalLM

from actors import sampled
from architectures import SHAPE
from collm.errors import ConfigurationError
from collm.models import scores
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.specs import model_context_length
from collm.packing import TokenSequence, pad_sequences


def make(folder: str, lora: bool = False, **options) -> Policy:
    backbone = Backbone(folder, "float32")
    if lora:
        torch.manual_seed(1)
        backbone.add_adapter("a1", 2, 4.0, 0.0)
        backbone.add_adapter("a2", 2, 4.0, 0.0)
        for weight in backbone.adapter_parameters("a1") + backbone.adapter_parameters("a2"):
            torch.nn.init.normal_(weight, std=0.1)  # a fresh adapter does nothing
    spec = PolicySpec(path=folder, max_new_tokens=6, lora_rank=2 if lora else 0, **options)
    return Policy("a1", spec, backbone, "a1" if lora else None)


def rows() -> list[TokenSequence]:
    """Dialogues of three, two and one turns of different lengths."""
    torch.manual_seed(2)
    sequences = []
    for row, lengths in enumerate([[(5, 3), (4, 2), (1, 6)], [(9, 1), (2, 2)], [(3, 4)]]):
        turns = [turn for t, (context, action) in enumerate(lengths) for turn in [-1] * context + [t] * action]
        ids = torch.randint(5, 400, (len(turns),)).tolist()
        sequences.append(TokenSequence(row, ids, turns, [0.0] * len(turns)))
    return sequences


def reference(policy: Policy, sequence: TokenSequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies at the scored positions of one row, from all logits."""
    policy.backbone.activate(policy.adapter)
    logits = policy.backbone.lm(torch.tensor([sequence.ids])).logits[0]
    log_probs = (logits / policy.spec.temperature).log_softmax(-1)
    scored = [index for index, turn in enumerate(sequence.turns) if turn >= 0]
    before = log_probs[[index - 1 for index in scored]]
    entropy = -(before.exp() * before).sum(-1)
    return before.gather(-1, torch.tensor(sequence.ids)[scored][:, None]).squeeze(-1), entropy


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probs_and_entropies_are_those_of_all_logits(tiny_folder: str, temperature: float, lora: bool) -> None:
    policy = make(tiny_folder, lora, temperature=temperature)
    batch = pad_sequences(rows(), 0, "cpu")
    log_probs, entropies = policy.log_probs(batch)
    assert (log_probs[~batch.action_mask] == 0).all()
    for index, sequence in enumerate(rows()):
        mask = batch.action_mask[index]
        expected, expected_entropy = reference(policy, sequence)
        assert_close(log_probs[index][mask], expected, atol=1e-5, rtol=1e-5)
        assert_close(entropies[index][mask], expected_entropy, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing(tiny_folder: str) -> None:
    policy = make(tiny_folder)
    together = policy.log_probs(pad_sequences(rows(), 3, "cpu"))[0]
    for index, sequence in enumerate(rows()):
        alone = policy.log_probs(pad_sequences([sequence], 3, "cpu"))[0]
        assert_close(together[index, : len(sequence.ids)], alone[0], atol=1e-5, rtol=1e-5)


def test_one_pass_over_a_dialogue_equals_a_pass_per_turn(tiny_folder: str) -> None:
    policy = make(tiny_folder)
    whole = rows()[0]
    log_probs = policy.log_probs(pad_sequences([whole], 0, "cpu"))[0][0]
    for turn in range(3):
        end = max(index for index, t in enumerate(whole.turns) if t == turn) + 1
        turns = [t if t == turn else -1 for t in whole.turns[:end]]
        prefix = TokenSequence(0, whole.ids[:end], turns, [0.0] * end)
        alone = policy.log_probs(pad_sequences([prefix], 0, "cpu"))[0][0]
        mask = torch.tensor(turns) >= 0
        assert mask.sum() == [3, 2, 6][turn]
        assert_close(log_probs[:end][mask], alone[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_chunks_of_logits_change_neither_values_nor_gradients(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    policy = make(tiny_folder, lora)
    batch = pad_sequences(rows(), 0, "cpu")
    weights = torch.randn(batch.ids.shape, generator=torch.Generator().manual_seed(0))

    def values_and_gradients():
        log_probs, entropies = policy.log_probs(batch)
        loss = (weights * (log_probs + 0.3 * entropies)).sum()
        return log_probs.detach(), entropies.detach(), *torch.autograd.grad(loss, policy.parameters())

    whole = values_and_gradients()
    calls = []
    score = scores._score
    monkeypatch.setattr(scores, "_score", lambda *args: calls.append(1) or score(*args))
    monkeypatch.setattr(scores, "LOGITS_PER_CHUNK", 4 * policy.tokenizer.vocab_size)
    chunked = values_and_gradients()
    assert len(calls) == 2 * 5  # 18 tokens in chunks of 4, each once more in the backward pass
    assert_close(chunked, whole, atol=1e-5, rtol=1e-4)


def test_the_sampled_log_probs_are_the_scored_ones(tiny_folder: str) -> None:
    policy = make(tiny_folder, temperature=0.8, top_p=0.95, trained_policy="uncut")
    prompts = [policy.prompt([text], []) for text in ("task 1", "a much longer task 2", "")]
    actions = sampled(policy, prompts, torch.Generator().manual_seed(0), greedy=False)
    sequences = [
        TokenSequence(
            row,
            [*action.prompt_ids, *action.token_ids],
            [-1] * len(action.prompt_ids) + [0] * len(action.token_ids),
            [0.0] * len(action.prompt_ids) + list(action.log_probs),
        )
        for row, action in enumerate(actions)
    ]
    batch = pad_sequences(sequences, 0, "cpu")
    assert_close(policy.log_probs(batch)[0], batch.old_log_probs, atol=1e-4, rtol=1e-4)


def test_sampled_actions_say_whether_they_were_cut(tiny_folder: str) -> None:
    policy = make(tiny_folder)
    prompt = policy.prompt(["task 1"], [])
    (cut,) = sampled(policy, [prompt], torch.Generator(), greedy=True)
    assert cut.truncated == (cut.token_ids[-1] != policy.tokenizer.eos_token_id)
    assert len(cut.token_ids) <= 6
    policy.eos_ids = {cut.token_ids[0]}  # the same answer, ended by its first token
    (ended,) = sampled(policy, [prompt], torch.Generator(), greedy=True)
    assert (ended.token_ids, ended.truncated) == (cut.token_ids[:1], False)


def test_demonstrations_are_ended_and_fit(tiny_folder: str) -> None:
    policy = make(tiny_folder)
    action = policy.encode_action("1 2 3 4 5 6 7 8", [1, 2])
    whole = policy.tokenizer("1 2 3 4 5 6 7 8", add_special_tokens=False).input_ids
    assert (action.token_ids, action.truncated) == (whole[:6], True)  # max_new_tokens, and no end
    short = policy.encode_action("1 2", [1])
    assert short.token_ids == [
        *policy.tokenizer("1 2", add_special_tokens=False).input_ids,
        policy.tokenizer.eos_token_id,
    ]
    assert not short.truncated
    assert policy.encode_action("", [1]).token_ids == [policy.tokenizer.eos_token_id]


# Adapters


def test_adapters_of_one_backbone_are_independent(tiny_folder: str) -> None:
    first = make(tiny_folder, lora=True)
    second = Policy("a2", replace(first.spec), first.backbone, "a2")
    batch = pad_sequences(rows(), 0, "cpu")
    base = make(tiny_folder).log_probs(batch)[0].detach()
    frozen = {name: weight.clone() for name, weight in first.backbone.lm.named_parameters() if "lora_" not in name}
    before = [policy.log_probs(batch)[0].detach() for policy in (first, second)]
    assert (before[0] - before[1]).abs().max() > 1e-3
    for policy in (first, second):
        assert_close(policy.log_probs(batch, adapter=None)[0].detach(), base, atol=1e-5, rtol=1e-5)

    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    first.log_probs(batch)[0].sum().backward()
    optimizer.step()
    assert all(weight.grad is None for weight in second.parameters())
    after = [policy.log_probs(batch)[0].detach() for policy in (first, second)]
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert_close(after[1], before[1], rtol=0, atol=0)
    assert_close(first.log_probs(batch, adapter=None)[0].detach(), base, atol=1e-5, rtol=1e-5)
    for name, weight in first.backbone.lm.named_parameters():
        if "lora_" not in name:
            assert_close(weight.detach(), frozen[name], rtol=0, atol=0)


def test_adapter_names_that_contain_each_other(tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    for name in ("a", "aa", "a_lora"):
        backbone.add_adapter(name, 2, 4.0, 0.0)
    sets = [{id(weight) for weight in backbone.adapter_parameters(name)} for name in ("a", "aa", "a_lora")]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 3 * 2 * 2 * 7  # two matrices on 7 layers of 2 blocks


# Exported folders


def test_a_full_model_is_exported_as_an_ordinary_folder(tiny_folder: str, tmp_path: Path) -> None:
    policy = make(tiny_folder)
    for weight in policy.parameters():
        weight.data += 0.01
    policy.save(tmp_path)
    ids = torch.tensor([rows()[0].ids])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(loaded(ids).logits, policy.backbone.lm(ids).logits, rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.tokenizer.chat_template


@pytest.mark.parametrize("agent_id", ["a1", "a2"])
def test_an_adapter_is_exported_as_a_peft_folder(tiny_folder: str, tmp_path: Path, agent_id: str) -> None:
    first = make(tiny_folder, lora=True)
    policy = Policy(agent_id, first.spec, first.backbone, agent_id)
    policy.save(tmp_path)
    ids = torch.tensor([rows()[0].ids])
    policy.backbone.activate(agent_id)
    expected = policy.backbone.lm(ids).logits
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path)
    assert_close(loaded(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert not list(tmp_path.glob("model*.safetensors"))
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|end|>"


# Specifications


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"context_length": 8, "max_new_tokens": 8}, "no room for a prompt in a context of 8 tokens"),
    ],
)
def test_settings_that_cannot_work(tiny_folder: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PolicySpec(path=tiny_folder, **options).check("policy")


def test_the_context_is_the_shorter_of_model_and_setting(tiny_folder: str) -> None:
    assert PolicySpec(path=tiny_folder, max_new_tokens=24).prompt_room() == 1000
    assert PolicySpec(path=tiny_folder, max_new_tokens=24, context_length=100).prompt_room() == 76
    assert PolicySpec(path=tiny_folder, max_new_tokens=24, context_length=9000).prompt_room() == 1000


@pytest.mark.parametrize(
    ("rotation", "longest"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 64),
        ({"rope_type": "default"}, 256),
    ],
)
def test_rows_never_reach_the_length_at_which_rotations_change(
    tiny_folder: str, tmp_path: Path, rotation: dict, longest: int
) -> None:
    """A longer row would change the numbers of the others in its batch, which the context length prevents."""
    if rotation["rope_type"] == "longrope":
        rotation = {**rotation, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(
        **{**SHAPE, "sliding_window": None, "original_max_position_embeddings": 64},
        rope_parameters={**rotation, "rope_theta": 10000.0},
    )
    config.save_pretrained(tmp_path)
    assert model_context_length(str(tmp_path)) == longest
    torch.manual_seed(0)
    lm = Phi3ForCausalLM(config).eval()
    short, rows = torch.arange(2, 22)[None], torch.randint(2, 97, (2, longest + 8))
    rows[0, :20] = short
    alone, beside = lm(short).logits[0], lm(rows[:, :longest]).logits[0, :20]
    assert_close(beside, alone, atol=1e-5, rtol=0)
    if longest == 64:
        assert (lm(rows).logits[0, :20] - alone).abs().max() > 1e-3
