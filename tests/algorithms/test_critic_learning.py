"""What else critics may learn from: other targets and earlier rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.critics.replay_buffer import ReplayBuffer
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.objectives import next_turn
from collm.studies.runs import read_run
from collm.trajectory import RolloutBatch
from untrained import without_trainer

SPEC = {"agent_ids": ["a", "b"], "policy": PolicySpec("tiny"), "critic": LanguageModelCritic(ModelSpec("tiny"))}


def test_critic_lambda_sets_the_targets_only() -> None:
    """Rewards 1, 2 and values 5, 3: TD targets 1 + 3 and 2, Monte-Carlo ones 3 and 2."""
    batch = RolloutBatch(
        [], torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([0]), torch.ones(1)
    )
    values = torch.tensor([[5.0, 3.0]])
    errors = torch.tensor([[-1.0, -1.0]])  # of lambda 0
    for setting, expected in ((None, [[4.0, 2.0]]), (1.0, [[3.0, 2.0]]), (0.5, [[3.5, 2.0]])):
        module = CoLLMCC(gae_lambda=0.0, critic_lambda=setting, **SPEC)
        assert_close(
            module.value_targets(batch, values, next_turn(values, batch.turn_mask), errors), torch.tensor(expected)
        )


def with_one_agent(folder: str, **settings: float) -> CoLLMCC:
    policy = PolicySpec(folder, max_new_tokens=4)
    critic = LanguageModelCritic(ModelSpec(folder))
    return without_trainer(CoLLMCC(agent_ids=["a"], policy=policy, critic=critic, **settings))


def test_critics_start_at_the_mean_return_of_played_turns(tiny_folder: str) -> None:
    """Rewards 1, 2 and 4 with discount 1/2: returns 2, 2 and 4, whose mean is 8/3. Later rollouts change nothing."""
    module = with_one_agent(tiny_folder, discount=0.5)
    played = torch.tensor([[True, True], [True, False]])
    for rewards in ([[1.0, 2.0], [4.0, 0.0]], [[9.0, 9.0], [9.0, 0.0]]):
        module.initialize_critics(RolloutBatch([], torch.tensor(rewards), played, torch.tensor([0, 1]), torch.ones(2)))
        assert module.critic.network.head.bias.item() == pytest.approx(8 / 3)


def test_what_is_logged_of_a_critic(tiny_folder: str) -> None:
    """Explained is the return, whatever the critic regresses on: of 3, 5, 1 at the first turn it says 3, 4, 2.

    Errors 0, 1, -1 against deviations 0, 2, -2: 1 - 2 / 8. At the second turn returns are 2, 4, and it says 1 each
    time: errors 1, 3 deviate as much as the returns, so nothing is explained; of all, 1 - (2 + 2) / (8 + 2).
    """
    module = with_one_agent(tiny_folder)
    played = torch.tensor([[True, True], [True, True], [True, False]])
    batch = RolloutBatch([], torch.tensor([[1.0, 2.0], [1.0, 4.0], [1.0, 0.0]]), played, torch.arange(3), torch.ones(3))
    values = torch.tensor([[3.0, 1.0], [4.0, 1.0], [2.0, 99.0]])
    targets = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 99.0]])
    module.log_critic("critic", batch, values, targets)
    logged = dict(module.logged)
    assert logged["critic/explained_variance"] == pytest.approx(1 - 4 / 10)
    assert logged["critic/explained_variance/turn_1"] == pytest.approx(1 - 2 / 8)
    assert logged["critic/explained_variance/turn_2"] == pytest.approx(0.0)
    assert logged["critic/value"] == pytest.approx(11 / 5)
    assert logged["critic/target"] == pytest.approx(10 / 5)


REPLAY = ("--model.critic.replay=2", "--model.critic.replay_steps=3", "--model.critic.replay_batch=3")


def test_replay_adds_steps_and_a_resumed_run_goes_on_as_it_would_have(
    fit: Callable[..., int], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    optimize = ActorCritic.optimize

    def counted(self: ActorCritic, name: str, losses: Iterable[torch.Tensor], metric: str) -> None:
        steps.append(metric)
        optimize(self, name, losses, metric)

    drawn: list[int] = []
    draw = ReplayBuffer.draw
    monkeypatch.setattr(ReplayBuffer, "draw", lambda self, number: drawn.append(number) or draw(self, number))
    monkeypatch.setattr(ActorCritic, "optimize", counted)
    assert fit(*REPLAY, "--trainer.max_epochs=3") == 0
    assert steps.count("loss/critic") == 3
    assert steps.count("loss/critic/replay") == 3 * 3
    assert drawn == [3] * 9
    assert fit(*REPLAY, "--trainer.max_epochs=2") == 0
    checkpoint = run_folder.with_name("version_1") / "checkpoints" / "last.ckpt"
    assert fit(*REPLAY, "--trainer.max_epochs=3", "--ckpt_path", str(checkpoint)) == 0
    whole, resumed = (read_run(run_folder.with_name(name)).scalars for name in ("version_0", "version_2"))
    last = max(whole["loss/critic/replay"])
    assert resumed["loss/critic/replay"][last] == pytest.approx(whole["loss/critic/replay"][last], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"epochs": 0}, "critic.epochs is 0"),
        ({"replay": -1}, "critic.replay is -1"),
        ({"replay": 4, "replay_steps": 0}, "critic.replay_steps is 0"),
        ({"replay_batch": 0}, "critic.replay_batch is 0"),
        ({"loss_weight": 0.0}, "critic.loss_weight is 0.0"),
        ({"value_clip": 0.0}, "critic.value_clip is 0.0"),
    ],
)
def test_bad_settings_of_a_critic(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        LanguageModelCritic(**settings)


def test_bad_settings_of_an_algorithm() -> None:
    with pytest.raises(ConfigurationError, match="critic_lambda is 1.5"):
        CoLLMCC(critic_lambda=1.5, **SPEC)
