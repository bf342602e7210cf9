"""A model with random initial weights plays the relay, with oracle critics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from actors import actors_of, sampled
from collm import cli
from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc import CoLLMDC
from collm.critics.oracle import OracleCritic
from collm.environments.games.relay import Relay
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.objectives import generalized_advantages
from collm.packing import TokenSequence, pad_sequences
from collm.samplers.parallel import Parallel
from collm.studies.oracle_sampler import Oracle
from collm.studies.runs import read_run
from collm.trajectory import collate
from toy import REPOSITORY

ACTIONS = [f"a{index}" for index in range(8)]
SPEC = PolicySpec("relay", allowed_words=ACTIONS, max_new_tokens=1)


def make_policies(scale: float) -> dict[str, Policy]:
    torch.manual_seed(0)
    policies = {}
    for agent_id in Relay().agent_ids:
        backbone = Backbone("relay", "float32")
        torch.nn.init.normal_(backbone.lm.lm_head.weight, std=scale)
        policies[agent_id] = Policy(agent_id, SPEC, backbone, None)
    return policies


def test_at_first_all_actions_are_equally_likely_and_nothing_else_is_written() -> None:
    policy = make_policies(0.0)["relay_1"]
    generator = torch.Generator().manual_seed(0)
    drawn = sampled(policy, [policy.prompt(["x3"], [])] * 400, generator, greedy=False)
    assert {action.text for action in drawn} == set(ACTIONS)
    assert_close(torch.tensor([action.log_probs for action in drawn]), torch.full((400, 1), 1 / 8).log())


def test_trained_log_probabilities_are_those_of_the_restricted_policy() -> None:
    policy = make_policies(0.5)["relay_1"]
    prompts = [policy.prompt([f"x{index}"], []) for index in range(8)]
    drawn = sampled(policy, prompts, torch.Generator().manual_seed(0), greedy=False)
    rows = [
        TokenSequence(row, [*action.prompt_ids, *action.token_ids], [-1] * len(action.prompt_ids) + [0])
        for row, action in enumerate(drawn)
    ]
    log_probs, entropies = policy.log_probs(pad_sequences(rows, 0, "cpu"))
    assert_close(log_probs[:, -1], torch.tensor([action.log_probs[0] for action in drawn]), rtol=1e-5, atol=1e-5)
    allowed = policy.tokenizer.convert_tokens_to_ids(ACTIONS)
    for prompt, entropy in zip(prompts, entropies[:, -1], strict=True):
        probabilities = policy.backbone.lm(torch.tensor([prompt])).logits[0, -1][allowed].softmax(-1)
        assert_close(entropy, -(probabilities * probabilities.log()).sum(), rtol=1e-5, atol=1e-5)
    (entropy.sum() + log_probs.sum()).backward()
    assert policy.backbone.lm.lm_head.weight.grad.isfinite().all()


def test_any_language_model_can_play(tiny_folder: str) -> None:
    game = Relay(horizon=2, instructions=True)
    spec = PolicySpec(tiny_folder, max_new_tokens=4)
    policies = {name: Policy(name, spec, Backbone(tiny_folder, "float32"), None) for name in game.agent_ids}
    for trajectory in Parallel().rollout(game, game.tasks("train")[:2], actors_of(policies), seed=0, device="cpu"):
        assert len(trajectory.turns) == 2
        assert 0 <= game.metrics(trajectory)["success"] <= 1


def test_histories_hold_the_probabilities_of_the_right_answers() -> None:
    policies = make_policies(0.3)
    game = Relay(horizon=3, reward="dense")
    trajectories = Oracle().rollout(game, game.tasks("train")[:4], actors_of(policies), seed=1, device="cpu")
    probabilities = {}
    for agent_id, policy in policies.items():
        for row, trajectory in enumerate(trajectories):
            for index, turn in enumerate(trajectory.turns):
                prompt = torch.tensor([list(turn.actions[agent_id].prompt_ids)])
                logits = policy.backbone.lm(prompt).logits[0, -1]
                allowed = policy.tokenizer.convert_tokens_to_ids(ACTIONS)
                probability = logits[allowed].softmax(-1)[ACTIONS.index(turn.info["right"][agent_id])]
                probabilities[row, index, agent_id] = float(probability.detach())
                assert turn.actions[agent_id].text in ACTIONS
    first, second = game.agent_ids
    mean = [
        [sum(probabilities[row, index, name] for row in range(4)) / 4 for name in game.agent_ids] for index in range(3)
    ]
    ahead = [mean[1][0] * mean[1][1] + mean[2][0] * mean[2][1], mean[2][0] * mean[2][1], 0.0]
    for row, trajectory in enumerate(trajectories):
        for index, turn in enumerate(trajectory.turns):
            now = probabilities[row, index, first], probabilities[row, index, second]
            assert turn.values["team"] == pytest.approx(now[0] * now[1] + ahead[index], rel=1e-4)
            assert turn.values[first] == pytest.approx(now[0] * mean[index][1] + ahead[index], rel=1e-4)
            assert turn.values[second] == pytest.approx(mean[index][0] * now[1] + ahead[index], rel=1e-4)


@pytest.mark.parametrize(("algorithm", "names"), [(CoLLMCC, ("team", "team")), (CoLLMDC, Relay().agent_ids)])
def test_advantages_are_the_errors_of_the_noted_values(
    monkeypatch: pytest.MonkeyPatch, algorithm: type[ActorCritic], names: tuple[str, str]
) -> None:
    game = Relay(horizon=3)
    played = Oracle().rollout(game, game.tasks("train")[:3], actors_of(make_policies(0.3)), seed=2, device="cpu")
    module = algorithm(critic=OracleCritic(), gae_lambda=0.5, agent_ids=game.agent_ids, policy=SPEC)
    module.num_rollouts = 1
    used: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module, "update_policies", lambda batch, advantages: used.update(advantages))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    batch = collate(played)
    module.training_step(batch, 0)
    for agent_id, name in zip(game.agent_ids, names, strict=True):
        values = torch.tensor([[turn.values[name] for turn in trajectory.turns] for trajectory in played])
        expected = generalized_advantages(batch.rewards, values, batch.turn_mask, 1.0, 0.5)
        assert_close(used[agent_id], expected)
        assert expected.abs().sum() > 0


def test_without_noted_values_there_is_nothing_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    game = Relay(horizon=2)
    played = Parallel().rollout(game, game.tasks("train")[:2], actors_of(make_policies(0.0)), 0, "cpu")
    module = CoLLMCC(critic=OracleCritic(), agent_ids=game.agent_ids, policy=SPEC)
    with pytest.raises(ConfigurationError, match="set data.sampler to collm.studies.oracle_sampler.Oracle"):
        module.training_step(collate(played), 0)


def test_words_that_are_several_tokens_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'a3 a4' is 2 tokens"):
        PolicySpec("relay", allowed_words=["a3 a4"], max_new_tokens=1).check("policy")


@pytest.mark.slow
def test_the_relay_is_learned_from_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn, four words, known values: 25 updates of 32 episodes lift the success from 1/16 to over a half."""
    monkeypatch.chdir(tmp_path)
    files = ("algorithms/oracle", "environments/relay", "models/relay")
    args = [part for name in files for part in ("--config", str(REPOSITORY / "configs" / f"{name}.yaml"))]
    game = {"horizon": 1, "alphabet": 4}
    args += [f"--data.environment.{name}={value}" for name, value in game.items()]
    args += ["--model.policy.allowed_words", json.dumps(ACTIONS[:4]), "--model.policy.learning_rate=0.01"]
    args += ["--model.normalize_advantage=true", "--data.tasks_per_rollout=32", "--data.rollouts_per_epoch=25"]
    args += ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    args += ["--trainer.enable_checkpointing=false", "--trainer.callbacks=null"]
    assert cli.main(REPOSITORY / "configs" / "base.yaml", ["fit", *args]) == 0
    success = read_run(tmp_path / "logs" / "collm" / "version_0").curve("rollout/success").values
    assert len(success) == 25
    assert success[:3].mean() < 0.2
    assert success[-5:].mean() > 0.5
