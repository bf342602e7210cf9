"""How much of the return can be known: analysis of variance by hand, and against a game that is solved exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from actors import actors_of
from collm.commands.ceiling import main
from collm.errors import ConfigurationError
from collm.returns import discounted_returns
from collm.samplers.discussion import Discussion
from collm.samplers.parallel import Parallel
from collm.studies.ceiling import MeasureCeiling, branch, critic_values
from collm.studies.variance import ceiling, variance_parts
from collm.trajectory import RolloutBatch
from enumerated import FIRST, FULL, SECOND, STOPS, Enumerated
from tabular import TwoTurns

NAN = np.nan


def test_variance_parts_by_hand() -> None:
    """First turn. Task 1: histories (1, 3) and (5, 7), within 2 and 2, means 2 and 6, between 8, mean 4. Task 2: (0, 0)
    and (2, 2), within 0, between 2, mean 1. Chance (2 + 0) / 2 = 1; histories (8 + 2) / 2 - 1 / 2 = 4.5; tasks
    var(4, 1) - (8 / 2 + 2 / 2) / 2 = 4.5 - 2.5 = 2. At the second turn task 2 has one history left and is left out.
    """
    returns = np.array([[[[1, 3], [0, 2]], [[5, 7], [4, 4]]], [[[0, 0], [NAN, NAN]], [[2, 2], [9, 9]]]], dtype=float)
    parts = variance_parts(returns, np.array([[0, 1], [0, 0]]))
    assert parts["chance"].tolist() == [[1.0, 1.0], [2.0, 1.0]]
    assert parts["history"].tolist() == [[4.5, 4.0], [7.0, 4.0]]  # second turn: means 1 and 4, between 4.5, less 1 / 2
    assert parts["task"][0, 0] == 2.0
    assert np.isnan(parts["task"][0, 1])  # of one task nothing is known

    report = ceiling(returns[:, :, :1], {"critic": np.array([[[1.0], [3.0]], [[2.0], [2.0]]])})
    assert report["turn 1"]["ceiling"][0] == pytest.approx(6.5 / 7.5)
    assert report["pooled"]["ceiling"][0] == pytest.approx(6.5 / 7.5)
    assert report["turn 1"]["task"][0] == pytest.approx(2 / 7.5)
    # The episodes' own: 1, 5, 0, 2, squares 14. Errors 0, 2, -2, 0, squares 8.
    assert report["turn 1"]["critic explained"][0] == pytest.approx(1 - 8 / 14)
    assert report["turn 1"]["critic share"][0] == pytest.approx((1 - 8 / 14) / (6.5 / 7.5))


def exact(game: TwoTurns) -> list[float]:
    """Var(E[G_t | h_t]) / Var(G_t) at each turn, over episodes that reach it."""
    world = Enumerated(game)
    returns = discounted_returns(world.batch.rewards, world.batch.turn_mask, 1.0)
    values = world.values(1.0, ["first", "second"])
    shares = []
    for turn in range(2):
        mask = world.batch.turn_mask[:, turn]
        weight = world.probabilities[mask] / world.probabilities[mask].sum()

        def variance(numbers: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            return (weight * (numbers - (weight * numbers).sum()).square()).sum()

        shares.append(float(variance(values[mask, turn]) / variance(returns[mask, turn])))
    return shares


@pytest.mark.parametrize("game", [FULL, STOPS], ids=["full", "stops"])
def test_the_ceiling_of_a_solved_game(game: TwoTurns) -> None:
    world = Enumerated(game)
    tasks = [game.tasks("train")[0]] * 150
    played, returns = branch(game, Parallel(), actors_of(world.policies), tasks, (4, 3), 1.0, 0, "cpu", 1000)
    assert returns.shape == (150, 4, 2, 3)
    for row, trajectory in enumerate(played):
        own = returns[row // 4, row % 4]
        assert own[0, 0] == trajectory.total_reward
        assert np.isnan(own[1]).all() == (len(trajectory.turns) == 1)
    known = solved_values(world)

    class Knows:
        def values(self, batch: RolloutBatch) -> torch.Tensor:
            values = torch.zeros_like(batch.rewards)
            for row, trajectory in enumerate(batch.trajectories):
                plan = tuple(turn.actions[name].text for turn in trajectory.turns[:1] for name in turn.actions)
                for turn in range(len(trajectory.turns)):
                    values[row, turn] = known[plan[: 2 * turn]]
            return values

    values = critic_values(Knows(), played, 40, torch.device("cpu")).reshape(150, 4, 2)
    report = ceiling(returns, {"critic": values})
    for turn, share in enumerate(exact(game)):
        told = report[f"turn {turn + 1}"]
        low, high = told["ceiling"][1:]
        assert low - 0.02 < share < high + 0.02
        assert high - low < 0.4
        assert told["critic explained"][0] == pytest.approx(share, abs=0.08)
        low, high = told["critic share"][1:]
        assert turn == 0 or low < 1 < high
    assert report["turn 1"]["task"][0] == pytest.approx(0, abs=0.05)  # all tasks are the same


def solved_values(world: Enumerated) -> dict[tuple[str, ...], float]:
    """Values of the joint history by the actions in it."""
    values = world.values(1.0, ["first", "second"])
    found = {}
    for row, plan in enumerate(world.played):
        found[()] = float(values[row, 0])
        if len(plan) > 1:
            found[tuple(plan[0])] = float(values[row, 1])
    return found


def test_continuations_share_what_was_before_and_nothing_else() -> None:
    """With a number drawn anew at every end, all rewards to go are different."""
    game = TwoTurns(FIRST, SECOND, noise=random.Random(0))
    world = Enumerated(TwoTurns(FIRST, SECOND))
    _, returns = branch(game, Parallel(), actors_of(world.policies), game.tasks("train"), (2, 4), 0.5, 0, "cpu", 3)
    assert len(np.unique(returns[:, :, 1])) == 4 * 2 * 4
    assert len(np.unique(returns[:, :, 0])) == 4 * 2 * 4


def test_what_agents_said_is_not_mixed_up_between_continuations() -> None:
    """Agents that talk before they act note their messages on the episode."""
    world = Enumerated(FULL)

    class Talk(Discussion):
        def shown(self, episode, agent_id, round):
            assert len(episode.messages) == 2 * round
            return "0"

    class Says:
        def prompt(self, observations, actions):
            return [0]

        sample = None

    policies = {name: Says() for name in world.policies}
    for name, policy in policies.items():
        policy.sample = lambda prompts, generator, greedy, own=world.policies[name]: own.sample(
            prompts, generator, greedy
        )
    played, returns = branch(FULL, Talk(), actors_of(policies), FULL.tasks("train"), (2, 2), 1.0, 0, "cpu", 100)
    assert not np.isnan(returns).any()
    assert all(len(turn.messages) == 4 for trajectory in played for turn in trajectory.turns)


def test_the_command(tmp_path: Path, tiny_folder: str, fit, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "toy.yaml"
    args = ["--config", str(config), "--data.environment=described.DescribedToy", "--trainer.accelerator=cpu"]
    args += ["--model.critic=collm.critics.features.FeaturesCritic", "--out", str(tmp_path / "out")]
    assert main([*args, "--tasks=4", "--episodes=2", "--fit_rollouts=2"]) == 0
    report = json.loads((tmp_path / "out" / "ceiling.json").read_text())
    assert list(report) == ["pooled", "turn 1", "turn 2"]
    assert not Path("config.yaml").exists()  # all of it is in the folder asked for
    assert (tmp_path / "out" / "config.yaml").is_file()
    assert set(report["pooled"]) == {"ceiling", "task", "critic explained", "critic share"}
    table = (tmp_path / "out" / "ceiling.md").read_text()
    assert table.startswith("| | ceiling | task | critic explained | critic share |\n")
    assert table in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["tasks", "episodes", "continuations"])
def test_one_of_anything_is_too_few(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} is 1; it must be a whole number of at least 2"):
        MeasureCeiling("out", **{setting: 1})


def test_values_on_the_policies_own_weights_are_refused() -> None:
    module = SimpleNamespace(critics_share_weights=True)
    with pytest.raises(ConfigurationError, match="SimpleNamespace has its values on the policies' weights"):
        MeasureCeiling("out").on_fit_start(SimpleNamespace(world_size=1), module)
