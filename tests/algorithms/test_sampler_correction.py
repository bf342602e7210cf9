"""The gap between what sampled and what trains, measured and corrected by truncated importance weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from actors import sampled
from collm.algorithms.collm_dc_shared import CoLLMDCShared
from collm.algorithms.magrpo import MAGRPO
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.objectives import sampler_weights
from collm.packing import action_sequences
from collm.trajectory import Task, Trajectory, Turn, collate
from untrained import without_trainer


def test_weights_by_hand() -> None:
    """pi / mu of 0.5 / 0.25, 0.1 / 0.2 and 0.9 / 0.1 with cap 3: 2, 0.5 and 3 instead of 9; masked entries count 1."""
    ours, theirs = torch.tensor([0.5, 0.1, 0.9, 0.3]).log(), torch.tensor([0.25, 0.2, 0.1, 0.0]).log()
    weights = sampler_weights(ours.requires_grad_(), theirs, torch.tensor([True, True, True, False]), 3.0)
    assert_close(weights, torch.tensor([2.0, 0.5, 3.0, 1.0]))
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("engine", "given", "expected"),
    [
        ("collm", None, "off"),
        ("transformers", None, "off"),
        ("vllm", None, "token"),
        ("my.engine.Engine", None, "token"),
        ("vllm", "off", "off"),
        ("collm", "response", "response"),
    ],
)
def test_it_is_on_for_engines_with_other_numbers(engine: str, given: str | None, expected: str) -> None:
    assert PolicySpec(engine=engine, sampler_correction=given).correction() == expected


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="'sometimes'; choose one of token, response, off"):
        PolicySpec(sampler_correction="sometimes").check("policy")
    with pytest.raises(ConfigurationError, match="sampler_weight_cap is 0"):
        PolicySpec(sampler_weight_cap=0.0).check("policy")


GAPS = ([0.2, -0.3, 1.5], [0.1, 0.1, 0.1])  # log pi - log mu of the tokens of two responses
CAP = 1.5


def make(folder: str, correction: str):
    """An algorithm with one agent, two responses of three tokens whose recorded log-probabilities are off by `GAPS`."""
    spec = PolicySpec(folder, max_new_tokens=3, min_new_tokens=3, trained_policy="uncut")
    spec = replace(spec, sampler_correction=correction, sampler_weight_cap=CAP)
    module = without_trainer(MAGRPO(agent_ids=["a"], policy=spec))
    policy = module.policies["a"]
    actions = sampled(policy, [[7, 8, 9], [20]], torch.Generator().manual_seed(0), greedy=False)
    trajectories = []
    for row, (action, gaps) in enumerate(zip(actions, GAPS, strict=True)):
        theirs = [log_prob - gap for log_prob, gap in zip(action.log_probs, gaps, strict=True)]
        turn = Turn({"a": ""}, {"a": replace(action, log_probs=theirs)}, 0.0)
        trajectories.append(Trajectory(Task(str(row), {}), row, 1, 1.0, [turn]))
    return module, policy, actions, action_sequences(trajectories, "a")


def gradient(policy, losses) -> list[torch.Tensor]:
    return list(torch.autograd.grad(sum(losses), policy.parameters()))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        # e^0.2, e^-0.3, and e^1.5 = 4.48 cut to the cap; e^0.1 three times
        ("token", [[1.221403, 0.740818, 1.5], [1.105171] * 3]),
        # e^(0.2 - 0.3 + 1.5) = e^1.4 = 4.06 cut to the cap; e^0.3
        ("response", [[1.5] * 3, [1.349859] * 3]),
        # today's ratio of whole responses, without a limit: e^1.4 and e^0.3
        ("off", [[4.055200] * 3, [1.349859] * 3]),
    ],
)
def test_gradients_are_weighted(tiny_folder: str, correction: str, weights: list, recorded: bool) -> None:
    module, policy, actions, sequences = make(tiny_folder, correction)
    advantages = torch.tensor([[2.0], [-1.0]])
    if recorded:  # as with several steps, before the first of which they are computed
        sequences = module.with_trainer_log_probs("a", sequences)
        assert [sum(map(bool, sequence.trainer_log_probs)) for sequence in sequences] == [3, 3]
    found = gradient(policy, module.policy_losses("a", sequences, {0, 1}, advantages))
    expected: list = []
    for action, own, advantage in zip(actions, weights, advantages[:, 0], strict=True):
        ids = torch.tensor([[*action.prompt_ids, *action.token_ids]])
        log_probs = policy.backbone.lm(ids).logits[0, len(action.prompt_ids) - 1 : -1].log_softmax(-1)
        of_tokens = log_probs.gather(-1, torch.tensor(action.token_ids)[:, None]).squeeze(-1)
        expected.append(-advantage * (torch.tensor(own) * of_tokens).sum() / 2)
    assert_close(found, gradient(policy, expected), atol=1e-5, rtol=1e-3)
    logged = dict(module.logged)
    assert logged["policy/log_prob_drift/a"] == pytest.approx(2.3 / 6, abs=1e-4)  # the mean of |GAPS|
    if correction == "off":
        assert "policy/sampler_weight/a" not in logged
    else:
        assert logged["policy/sampler_weight/a"] == pytest.approx(sum(map(sum, weights)) / 6, abs=1e-4)


def test_with_several_steps_later_ones_compare_with_the_trainer_before_the_first(tiny_folder: str) -> None:
    """After the weights moved, the weight stays that of the sampler and the ratio is that of the step."""
    module, policy, _, sequences = make(tiny_folder, "response")
    sequences = module.with_trainer_log_probs("a", sequences)
    before = [sum(sequence.trainer_log_probs) for sequence in sequences]
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(0.97)
    now = [sum(one.trainer_log_probs) for one in module.with_trainer_log_probs("a", sequences)]
    ratios = (torch.tensor(now) - torch.tensor(before)).exp()
    assert (ratios - 1).abs().max() > 0.01
    advantages = torch.tensor([[2.0], [-1.0]])
    loss = sum(module.policy_losses("a", sequences, {0, 1}, advantages)).item()
    weights = [1.5, 1.349859]
    expected = -sum(w * r * a for w, r, a in zip(weights, ratios.tolist(), [2.0, -1.0], strict=True)) / 2
    assert loss == pytest.approx(expected, rel=1e-3)


def recorded_at_steps(module, actions: list, step) -> list[bool]:
    """Whether each step of `step(batch)` is told what the trainer's log-probabilities were before the first one."""
    turns = [Turn({"a": "x"}, {"a": action}, 0.0) for action in actions]
    batch = collate([Trajectory(Task(str(row), {}), row, 1, 1.0, [turn]) for row, turn in enumerate(turns)])
    recorded: list[bool] = []

    def losses(agent_id: str, sequences: list, rows: set[int], advantages: torch.Tensor) -> list:
        recorded.append(all(sequence.trainer_log_probs for sequence in sequences))
        return []

    module.policy_losses = losses
    module.optimize = lambda name, losses, metric: list(losses)
    step(batch)
    return recorded


@pytest.mark.parametrize(
    ("settings", "steps"), [({}, [False]), ({"num_minibatches": 2}, [True] * 2), ({"num_epochs": 2}, [True] * 2)]
)
def test_the_trainer_before_the_first_step_is_recorded_for_several(
    tiny_folder: str, settings: dict[str, int], steps: list[bool]
) -> None:
    module, _, actions, _ = make(tiny_folder, "token")
    for name, value in settings.items():
        setattr(module, name, value)
    step = lambda batch: module.update_policies(batch, {"a": torch.ones(2, 1)})  # noqa: E731
    assert recorded_at_steps(module, actions, step) == steps


def test_value_heads_on_actors_compare_with_the_trainer_before_the_first_step_too(tiny_folder: str) -> None:
    spec = PolicySpec(tiny_folder, max_new_tokens=3, sampler_correction="token")
    module = without_trainer(CoLLMDCShared(agent_ids=["a"], policy=spec, num_epochs=2))
    module.num_rollouts = 1
    actions = sampled(module.policies["a"], [[7, 8, 9], [20]], torch.Generator().manual_seed(0), greedy=False)
    assert recorded_at_steps(module, actions, lambda batch: module.training_step(batch, 0)) == [True, True]
