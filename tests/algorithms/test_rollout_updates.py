"""What an update does with a rollout: its order of steps, its random parts, and how policies act before it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.magrpo import MAGRPO
from collm.algorithms.rollout_hooks import RolloutHooks
from collm.critics.language_model import LanguageModelCritic
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.packing import action_sequences, pad_sequences
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from untrained import without_trainer


def test_advantages_are_normalized_before_they_are_clipped(make) -> None:
    algorithm = make(MAGRPO, normalize_advantage=True, advantage_clip=1.0)
    advantages, played = torch.tensor([[9.0, 1.0], [1.0, 1.0], [3.0, 77.0]]), torch.ones(3, 2, dtype=torch.bool)
    played[2, 1] = False
    # mean 3, deviation sqrt((36 + 4 + 4 + 4 + 0) / 5); 6 of them are more than 1 deviation, clipped
    deviation = (48 / 5) ** 0.5
    expected = torch.tensor([[1.0, -2 / deviation], [-2 / deviation, -2 / deviation], [0.0, 0.0]])
    assert_close(algorithm.shape_advantages(advantages, played), expected)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_pass_reads_every_trajectory_once(make, parts: int) -> None:
    algorithm = make(MAGRPO, num_minibatches=parts)
    torch.manual_seed(0)
    read = list(algorithm.minibatches(5, 9))
    assert len(read) == 9 * parts
    passes = [read[start : start + parts] for start in range(0, 9 * parts, parts)]
    for one in passes:
        assert sorted(row for rows in one for row in rows) == [0, 1, 2, 3, 4]
        assert max(map(len, one)) - min(map(len, one)) <= 1
    assert parts == 1 or any(one != passes[0] for one in passes)  # in another order each time


def test_policies_act_as_they_are_evaluated_and_train_again_afterwards(tiny_folder: str) -> None:
    module = without_trainer(MAGRPO(agent_ids=["a"], policy=PolicySpec(tiny_folder, max_new_tokens=4)))
    module.train()
    before = {name for name, part in module.named_modules() if part.training}
    with module.ready_to_sample():
        assert not any(part.training for part in module.modules())
    assert before == {name for name, part in module.named_modules() if part.training}
    assert "" in before


@pytest.mark.parametrize(("critic_lambda", "expected"), [(None, [3.0, 8.0]), (1.0, [5.0, 8.0]), (0.5, [4.0, 8.0])])
def test_critic_lambda_differs_from_gae_lambda(
    tiny_folder: str, critic_lambda: float | None, expected: list[float]
) -> None:
    module = CoLLMCC(
        agent_ids=["a"],
        policy=PolicySpec(tiny_folder, max_new_tokens=4),
        critic=LanguageModelCritic(ModelSpec(tiny_folder)),
        discount=0.5,
        critic_lambda=critic_lambda,
    )
    played = torch.ones(1, 2, dtype=torch.bool)
    batch = RolloutBatch([], torch.tensor([[1.0, 8.0]]), played, torch.zeros(1), torch.ones(1))
    values, next_values = torch.tensor([[7.0, 4.0]]), torch.tensor([[4.0, 0.0]])
    advantages = torch.tensor([[1 + 0.5 * 4 - 7, 8.0 - 4]])  # one-step TD errors
    # 1 + 0.5 * 4; 1 + 0.5 * 8; halfway 1 + 0.5 * (0.5 * 4 + 0.5 * 8)
    assert_close(module.value_targets(batch, values, next_values, advantages), torch.tensor([expected]))


@pytest.mark.parametrize(("rows", "num_tokens"), [({0, 1}, 6), ({0}, 4)])
def test_the_divergence_from_the_reference_is_a_mean_over_the_tokens_of_a_step(
    tiny_folder: str, rows: set[int], num_tokens: int
) -> None:
    spec = PolicySpec(tiny_folder, max_new_tokens=6)
    module = without_trainer(MAGRPO(agent_ids=["a"], policy=spec, kl_weight=0.5))
    policy, reference = module.policies["a"], module.references["a"]
    for weight in policy.parameters():
        weight.data.mul_(1.5)
    turns = [
        Turn({"a": "?"}, {"a": Action("", [5, 6], ids, [0.0] * len(ids))}, 0.0) for ids in ([7, 8, 9, 10], [11, 12])
    ]
    sequences = action_sequences([Trajectory(Task("t", {}), 0, 1, 1.0, [turn]) for turn in turns], "a")
    loss = sum(module.policy_losses("a", sequences, rows, torch.zeros(2, 1)))
    chunk = pad_sequences([sequences[row] for row in rows], 0, "cpu")
    with torch.no_grad():
        log_probs, reference_log_probs = (one.log_probs(chunk)[0] for one in (policy, reference))
    difference = (reference_log_probs - log_probs)[chunk.action_mask]
    divergence = (difference.exp() - difference - 1).sum() / num_tokens
    assert divergence > 0.01
    assert_close(loss.detach(), 0.5 * divergence)
    assert dict(module.logged)["policy/kl/a"] == pytest.approx(divergence.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("failed", "message"),
    [
        ([True, True], r"every episode failed \(sandbox: 4\)"),
        ([False, True, False], r"no turn was played, though 2 of 3 episodes did not fail \(sandbox: 2\)"),
        ([False], "no turn was played, though 1 of 1 episodes did not fail"),
    ],
)
def test_a_rollout_without_turns_says_what_became_of_its_episodes(failed: list[bool], message: str) -> None:
    """Each failed episode was tried twice."""
    episodes = [Trajectory(Task("t", {}), 0, 1, 1.0) for _ in failed]
    for episode, broken in zip(episodes, failed, strict=True):
        if broken:
            episode.error, episode.failures = "broke", [("sandbox", "broke")] * 2
    batch = collate([one for one in episodes if not one.error], 0.0, [one for one in episodes if one.error])
    with pytest.warns(UserWarning, match=f"^{message}: nothing is learned from this rollout"):
        RolloutHooks.skip_update(SimpleNamespace(_empty_rollouts=1), batch)
