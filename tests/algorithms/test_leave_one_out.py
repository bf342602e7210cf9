"""The counterfactual baseline: exact in an enumerated game, and read by a critic that cannot see what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.algorithms.collm_cc_loo import CoLLMCCLeaveOneOut
from collm.critics.counterfactual import CounterfactualEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.objectives import generalized_advantages
from collm.packing import micro_batches
from collm.trajectory import Action, Message, RolloutBatch, Task, Trajectory, Turn
from enumerated import FULL, STOPS, Enumerated
from tabular import AGENTS, TwoTurns
from untrained import lone_critic

SCALE = torch.tensor([1.0, *[2.0] * 4])[:, None]  # 1 / gamma^t by history, for gamma = 0.5
# What the first agent does pays little; the second one's actions are large and have nothing to do with it.
ADDED = torch.tensor([[1.0, 9.0], [0.0, 8.0]])
NOISY = TwoTurns(ADDED, ADDED.expand(4, 2, 2))


# The estimator


def targets(world: Enumerated, discount: float, gae_lambda: float) -> Tensor:
    """y_t with exact values, [B, T]."""
    values = world.values(discount, list(AGENTS))
    batch = world.batch
    return values + generalized_advantages(batch.rewards, values, batch.turn_mask, discount, gae_lambda)


def variance(world: Enumerated, agent_id: str, advantages: Tensor) -> float:
    """Variance of the gradient of one episode, summed over the parameters."""
    rows = torch.eye(len(advantages)) / world.probabilities  # one episode each
    single = torch.stack([world.estimate(agent_id, advantages * row[:, None]) for row in rows])
    mean = world.estimate(agent_id, advantages)
    return float((world.probabilities * (single - mean).square().sum((1, 2))).sum())


@pytest.mark.parametrize("game", [FULL, STOPS, NOISY], ids=["full", "stops", "noisy"])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_exact_baselines_are_unbiased(game: TwoTurns, gae_lambda: float) -> None:
    world = Enumerated(game)
    for discount, scale in ((1.0, 1.0), (0.5, SCALE)):
        for agent_id in AGENTS:
            advantages = targets(world, discount, gae_lambda) - world.values_without(discount, agent_id)
            assert_close(world.estimate(agent_id, advantages), world.true_gradient(agent_id, discount) * scale)


def test_a_wrong_baseline_is_unbiased_too_if_it_is_the_own_one() -> None:
    """Any function of what the baseline may see; that of the other agent is none."""
    world = Enumerated(FULL)
    for agent_id, other in (AGENTS, AGENTS[::-1]):
        true = world.true_gradient(agent_id, 1.0)
        wrong = world.values_without(1.0, agent_id).square() + 3
        assert_close(world.estimate(agent_id, targets(world, 1.0, 1.0) - wrong), true, rtol=1e-4, atol=1e-5)
        swapped = targets(world, 1.0, 1.0) - world.values_without(1.0, other)
        assert (world.estimate(agent_id, swapped) - true).abs().max() > 0.05


@pytest.mark.parametrize("agent_id", AGENTS)
@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_the_luck_of_the_other_is_taken_away(agent_id: str, gae_lambda: float) -> None:
    world = Enumerated(NOISY)
    targeted = targets(world, 1.0, gae_lambda)
    team = variance(world, agent_id, targeted - world.values(1.0, list(AGENTS)))
    assert variance(world, agent_id, targeted - world.values_without(1.0, agent_id)) < team


# The algorithm, with a critic that knows by heart


def build(folder: str, **kwargs: Any) -> CoLLMCCLeaveOneOut:
    specs = {"policy": PolicySpec(path=folder, max_new_tokens=4), "critic": LanguageModelCritic(ModelSpec(folder))}
    return CoLLMCCLeaveOneOut(agent_ids=AGENTS, **specs, **kwargs)


def test_advantages_by_hand(tiny_folder: str) -> None:
    algorithm = build(tiny_folder, discount=0.5)
    mask = torch.tensor([[True, True], [True, False]])
    batch = RolloutBatch([], torch.tensor([[1.0, 8.0], [2.0, 0.0]]), mask, torch.tensor([0, 0]), torch.ones(2))
    # V, without the first, without the second; then the second turn
    targeted = torch.tensor([[3.0, 2.0, 5.0, 4.0, 7.0, 6.0], [1.5, 1.0, 2.5, 0.0, 0.0, 0.0]]).view(2, 2, 3)
    regressed, advantages = [], {}
    critic = algorithm.critic
    critic.differentiable_values = lambda batch: targeted
    critic.update = lambda batch, values, targets: regressed.append(targets)
    algorithm.update_policies = lambda batch, targeted: advantages.update(targeted)
    algorithm.log_critic = lambda *args: None

    algorithm.num_rollouts = 1
    algorithm.training_step(batch, 0)
    # 1 + 0.5 * 4, 8; 2
    assert_close(regressed[0], torch.tensor([[3.0, 8.0], [2.0, 0.0]]))
    assert_close(advantages["first"], torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert_close(advantages["second"], torch.tensor([[-2.0, 2.0], [-0.5, 0.0]]))

    advantages.clear()
    algorithm.num_rollouts = algorithm.critic_warmup
    algorithm.training_step(batch, 0)
    assert not advantages
    assert len(regressed) == 2

    # a critic whose values of next turns are another's: 1 + 0.5 * 6
    critic.next_values = lambda batch, values: torch.tensor([[6.0, 0.0], [0.0, 0.0]])
    algorithm.training_step(batch, 0)
    assert_close(regressed[2], torch.tensor([[4.0, 8.0], [2.0, 0.0]]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gae_lambda": 1.5}, "gae_lambda is 1.5"),
        ({"parameters": "lora"}, "lora_rank is 0"),
    ],
)
def test_bad_input_loads_nothing(no_weights: None, tiny_folder: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(tiny_folder, **kwargs)


# The critic


@pytest.fixture
def make_critic(tiny_folder: str):
    def make(*reads: str) -> LanguageModelCritic:
        return lone_critic(tiny_folder, reads, CounterfactualEncoder)

    return make


def episode(*joint_actions: tuple[str, ...]) -> Trajectory:
    turns = []
    for index, texts in enumerate(joint_actions):
        actions = {f"a{index + 1}": Action(text) for index, text in enumerate(texts)}
        turns.append(Turn({name: f"look {index}" for name in actions}, actions, index / 2))
    return Trajectory(Task("task", {}), 0, 4, 1.0, turns)


def read(critic: LanguageModelCritic, *trajectories: Trajectory) -> Tensor:
    """V(h_t), then the value without each agent, [B, T, N + 1]."""
    longest, width = max(len(trajectory.turns) for trajectory in trajectories), critic.encoder.num_kinds
    shape = (len(trajectories), longest * width)
    values = torch.zeros(shape)
    with torch.no_grad():
        for batch in micro_batches(critic.encode(trajectories), 10_000, 0, "cpu"):
            values += batch.sum_by_turn(critic.network(batch), shape)
    return values.view(len(trajectories), longest, width)


def prefix(critic: LanguageModelCritic, trajectory: Trajectory, turn_index: int) -> str:
    """The text that the value at `place` is read from."""
    (row,) = [row for row in critic.encode([trajectory]) if turn_index in row.turns]
    return critic.network.tokenizer.decode(row.ids[: row.turns.index(turn_index) + 1])


def test_each_value_is_scored_once_in_a_row_per_agent(make_critic) -> None:
    critic = make_critic("a1", "a2", "a3")
    rows = critic.encode([episode(("x", "y", "z"), ("u", "v", "w"))] * 2)
    assert [row.row for row in rows] == [0, 0, 0, 1, 1, 1]
    scored = [turn for row in rows[:3] for turn in row.turns if turn >= 0]
    assert sorted(scored) == list(range(8))


def test_what_the_values_are_read_from(make_critic) -> None:
    critic, played = make_critic("a1", "a2"), episode(("x", "y"), ("z", "u"))
    assert prefix(critic, played, 0).endswith("look 0\n[value]")
    assert prefix(critic, played, 1).endswith("look 0\n[value]\n[a2] y\n[a1]")
    assert prefix(critic, played, 2).endswith("look 0\n[value]\n[a1] x\n[a2]")
    assert "\n[a1] x\n[a2] y\n" in prefix(critic, played, 5)  # earlier turns are whole
    assert prefix(critic, played, 5).endswith("look 1\n[value]\n[a1] z\n[a2]")


def test_values_do_not_depend_on_the_action_left_out(make_critic) -> None:
    critic = make_critic("a1", "a2")
    base, other_last, other_first = read(
        critic, *(episode(("x", text), ("z", last)) for text, last in (("y", "u"), ("y", "k k"), ("7", "u")))
    )
    assert_close(other_last[0], base[0], rtol=1e-4, atol=1e-5)
    assert_close(other_last[1, [0, 2]], base[1, [0, 2]], rtol=1e-4, atol=1e-5)
    assert abs(other_last[1, 1] - base[1, 1]) > 1e-3  # the other agent's baseline knows it
    assert_close(other_first[0, [0, 2]], base[0, [0, 2]], rtol=1e-4, atol=1e-5)
    assert abs(other_first[0, 1] - base[0, 1]) > 1e-3
    assert ((other_first[1] - base[1]).abs() > 1e-4).all()  # later it is part of the history


def test_answers_to_the_action_left_out_are_left_out(make_critic) -> None:
    """Where agents read each other within a turn, what others wrote afterwards would tell what the agent did."""
    critic, played = make_critic("a1", "a2"), episode(("x", "y"))
    said = [("a1", "p", 0), ("a2", "q", 0), ("a1", "x", 1), ("a2", "y", 1)]
    played.turns[0].messages = [Message(name, "", Action(text), round) for name, text, round in said]
    assert prefix(critic, played, 1).endswith("[value]\n[a2] q\n[a1]")
    assert prefix(critic, played, 2).endswith("[value]\n[a1] p\n[a2]")

    played.turns[0].messages = [Message("a2", "", Action("y"), 0), Message("a1", "", Action("x"), 1)]  # in order
    assert prefix(critic, played, 1).endswith("[value]\n[a2] y\n[a1]")
    assert prefix(critic, played, 2).endswith("[value]\n[a2]")


def test_one_agent_is_judged_by_its_history(make_critic) -> None:
    critic = make_critic("a1")
    one, other = read(critic, episode(("x",), ("y",)), episode(("x",), ("k k",)))
    assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(critic.encode([episode(("x",), ("y",))])) == 1


def test_batching_changes_nothing(make_critic) -> None:
    critic, short, long = make_critic("a1", "a2"), episode(("x", "y")), episode(("z", "u"), ("x", "x x x"))
    together = read(critic, short, long)
    assert_close(together[0, :1], read(critic, short)[0], rtol=1e-4, atol=1e-5)
    assert not together[0, 1].any()
    assert_close(together[1], read(critic, long)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [8, 60])
def test_a_short_context_cuts_the_oldest(make_critic, limit: int) -> None:
    critic, played = make_critic("a1", "a2"), episode(("x", "y"), ("z", "u"), ("v", "w"))
    critic.encoder.max_tokens = limit
    rows = critic.encode([played])
    assert sorted(turn for row in rows for turn in row.turns if turn >= 0) == list(range(9))
    assert max(len(row.ids) for row in rows) <= limit
    assert all(max(row.turns) >= 0 and len(row.ids) == len(row.turns) for row in rows)


def test_an_episode_without_turns_has_no_rows(make_critic) -> None:
    assert make_critic("a1", "a2").encode([episode()]) == []
