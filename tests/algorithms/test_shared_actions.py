"""Actions that several trajectories share: pooled with the weights of paths, with a ratio clip, and after pickling."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from actors import actors_of
from collm.algorithms.base import MultiAgentModule
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc_shared import CoLLMDCShared
from collm.algorithms.magrpo import MAGRPO
from collm.critics.language_model import LanguageModelCritic
from collm.errors import TrainingError
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.objectives import policy_gradient_loss
from collm.packing import pool_shared_actions, signed_shares
from collm.rollout_tree import Branch
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.studies.runs import read_run
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from toy import Toy
from untrained import without_trainer


def uneven_tree() -> RolloutBatch:
    """Two first actions; the first path ends there, and two paths go on from the second action.

    Weights of 1/2, 1/4 and 1/4 become 3/2, 3/4 and 3/4, whose mean is 1.
    """
    ended, shared = Action("ended"), Action("shared")
    paths = [[(ended, Branch(0, -1))]]
    paths += [[(shared, Branch(1, -1)), (Action(f"leaf {node}"), Branch(node, 1))] for node in (2, 3)]
    return collate(
        [
            Trajectory(
                Task("task", {}),
                0,
                2,
                1.0,
                [Turn({"a": "?"}, {"a": action}, 0.0, branch=branch) for action, branch in path],
                weight=1 / 2 / (len(paths) - 1 if len(path) == 2 else 1),
            )
            for path in paths
        ]
    )


def test_shared_actions_are_pooled_with_the_weights_of_their_paths() -> None:
    batch = uneven_tree()
    assert_close(batch.weights, torch.tensor([1.5, 0.75, 0.75]))
    advantages = torch.tensor([[2.0, 0.0], [4.0, -8.0], [-12.0, 16.0]])
    # 1.5 * 2; 0.75 * 4 + 0.75 * -12, -0.75 * 8; nothing, 0.75 * 16
    expected = torch.tensor([[3.0, 0.0], [-6.0, -6.0], [0.0, 12.0]])
    assert_close(pool_shared_actions(advantages, batch, "a"), expected)
    signed = torch.tensor([[[3.0, 0], [3.0, 0], [0, 12.0]], [[0, 0], [-9.0, -6.0], [0, 0]]])
    assert_close(signed_shares(advantages, batch, "a"), signed)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_a_clipped_loss_of_pooled_advantages_is_the_sum_over_the_paths(ratio: float) -> None:
    """The pooled advantages alone would not do: of 4 and -12 the one is clipped above, the other below."""
    batch, clip = uneven_tree(), 0.2
    advantages = torch.tensor([[2.0, 0.0], [4.0, -8.0], [-12.0, 16.0]])
    log_ratio = torch.full((3, 2), ratio).log()

    def loss_and_slope(advantages: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = log_ratio.clone().requires_grad_()
        loss = policy_gradient_loss(log_probs, torch.zeros(3, 2), advantages, batch.turn_mask, clip)
        return loss.detach(), torch.autograd.grad(loss, log_probs)[0].sum()

    def term(advantage: float) -> float:
        return min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)

    by_hand = -(1.5 * term(2) + 0.75 * (term(4) + term(-12) + term(-8) + term(16)))
    loss, slope = loss_and_slope(signed_shares(advantages, batch, "a"))
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    each_loss, each_slope = loss_and_slope(advantages * batch.weights[:, None])
    assert_close((loss, slope), (each_loss, each_slope))
    pooled = loss_and_slope(pool_shared_actions(advantages, batch, "a"))[0].item()
    assert (pooled == pytest.approx(by_hand, rel=1e-5)) == (0.8 <= ratio <= 1.2)


# Uneven trees: the path that ends early weighs as much as the two that go on from the other action


def test_trees_weigh_the_same_on_every_rank(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank has one tree of four paths: each tree has half of the 7, and the paths 1/2, 1/4 and 1/4 of it."""
    module, batch = build(tiny_folder), uneven_tree()
    others = torch.tensor([4.0, 1.0])  # its paths, and the sum of their probabilities
    ranks = {2: others}
    monkeypatch.setattr(
        "collm.algorithms.rollout_hooks.sum_over_ranks",
        lambda value, device: torch.as_tensor(value) + ranks.get(torch.as_tensor(value).numel(), 0),
    )
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(model=None))
    module.on_train_batch_start(batch, 0)
    assert_close(batch.weights, torch.tensor([7 / 4, 7 / 8, 7 / 8]))


@pytest.mark.parametrize("options", [{}, {"value_clip": 1.0}, {"normalize": True}])
def test_critics_weigh_paths(tiny_folder: str, options: dict[str, Any]) -> None:
    """Only the path that ends early is paid, 1: of the turns' weights, 3/2 and 4 times 3/4, it has 1/3, not 1/5."""
    critic = LanguageModelCritic(ModelSpec(tiny_folder), **options)
    module = build(tiny_folder, CoLLMCC, agent_ids=["a"], critic=critic)
    batch, targets, values = uneven_tree(), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), torch.zeros(3, 2)
    record = module.critic.record(batch, values, targets)
    if options == {"normalize": True}:  # mean 1/3, mean square 1/3; all values are still 0
        assert_close(module.critic.network.moments, torch.tensor([1 / 3, 1 / 3, 1.0]))
        assert_close(module.critic.network.scale.square(), torch.tensor(2 / 9))
        expected = 1 / 3 / (2 / 9)
    else:
        expected = 1 / 3
    assert float(sum(module.critic.losses(record, {0, 1, 2})).detach()) == pytest.approx(expected, rel=1e-5)
    batch.rewards[0, 0] = 1.0
    module.initialize_critics(batch)
    assert module.critic.network.head.bias.item() == pytest.approx(1 / 3, rel=1e-5)


# Whole updates


def build(folder: str, cls: type[MultiAgentModule] = MAGRPO, **kwargs: Any) -> MultiAgentModule:
    torch.manual_seed(0)
    specs = {"policy": PolicySpec(folder, learning_rate=0.05, max_new_tokens=4)}
    if cls is not MAGRPO:
        kwargs.setdefault("critic", LanguageModelCritic(ModelSpec(folder)))
    kwargs.setdefault("agent_ids", Toy().agent_ids)
    made = cls(optimizer=torch.optim.SGD, gradient_clip_norm=0.0, **specs, **kwargs)
    return without_trainer(made)


def crossed(module: MultiAgentModule) -> list[Trajectory]:
    """Paths of a tree whose joint actions share responses, with rewards that tell them apart."""
    game = Toy(num_tasks=1)
    with module.ready_to_sample():
        paths = Tree("cross").rollout(
            game, game.tasks("train"), actors_of(module.policies, module.num_rollouts), 1, "cpu", 2
        )
    turns = {turn.branch.node: turn for path in paths for turn in path.turns}
    for node, turn in turns.items():
        turn.reward = float(node * 7 % 5)
    return paths


def updated(module: MultiAgentModule, trajectories: list[Trajectory]) -> tuple[dict[str, Tensor], list]:
    """Weights and losses after an update; the module is left as it was."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.logged.clear()
    module.num_rollouts = 1
    torch.manual_seed(2)
    module.training_step(collate(trajectories), 0)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(before)
    assert any(not after[name].equal(value) for name, value in before.items())
    return after, list(module.logged)


def pickled_one_by_one(trajectories: list[Trajectory]) -> list[bytes]:
    """So that nothing that they share is one object when they are read."""
    return [pickle.dumps(trajectory) for trajectory in trajectories]


def learn_elsewhere(module: MultiAgentModule, dumped: list[bytes], path: Path) -> None:
    torch.save(updated(module, [pickle.loads(one) for one in dumped]), path)


@pytest.mark.parametrize("kwargs", [{}, {"num_epochs": 3, "ratio_clip": 0.1, "num_minibatches": 2}])
def test_a_batch_that_was_pickled_teaches_the_same_in_another_process(
    tiny_folder: str, tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    module = build(tiny_folder, **kwargs)
    paths = crossed(module)
    expected, logged = updated(module, paths)
    target = (module, pickled_one_by_one(paths), tmp_path / "loaded")
    process = multiprocessing.get_context("fork").Process(target=learn_elsewhere, args=target)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    loaded, loaded_logged = torch.load(tmp_path / "loaded", weights_only=False)
    assert loaded_logged == logged
    assert all(loaded[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("cls", [MAGRPO, CoLLMDCShared])
def test_a_clipped_update_of_a_tree_equals_that_of_separate_paths(
    tiny_folder: str, cls: type[MultiAgentModule]
) -> None:
    """The same rows with uids of their own share nothing, so that every path is scored with its own advantage."""
    kwargs: dict[str, Any] = {"num_generations": 2}
    if cls is not MAGRPO:
        kwargs = {"critic": LanguageModelCritic(ModelSpec(tiny_folder), loss_weight=1e-9)}
    module = build(tiny_folder, cls, num_epochs=4, ratio_clip=0.02, **kwargs)
    paths = crossed(module)
    together, _ = updated(module, paths)
    for path in paths:
        path.turns = [
            Turn(
                turn.observations,
                {
                    name: Action(action.text, action.prompt_ids, action.token_ids, action.log_probs)
                    for name, action in turn.actions.items()
                },
                turn.reward,
                branch=turn.branch,
            )
            for turn in path.turns
        ]
    apart, _ = updated(module, paths)
    for name, value in together.items():
        assert_close(apart[name], value, rtol=1e-4, atol=1e-5, msg=name)


# The policy that wrote an action


def test_actions_carry_the_number_of_updates_behind_them(tiny_folder: str) -> None:
    module = build(tiny_folder)
    for version in (0, 5):
        module.num_rollouts = version
        written = [action for path in crossed(module) for turn in path.turns for action in turn.actions.values()]
        assert {action.policy_version for action in written} == {version}
    demonstrated = module.policies["a1"].encode_action("4", [1])
    assert demonstrated.policy_version is None


def told_to_stop(module: MultiAgentModule, batch: RolloutBatch) -> list[str]:
    said: list[str] = []

    def stop(reason: str, trajectories: list[Trajectory]) -> None:
        said.append(reason)
        raise TrainingError(reason)

    module.stop = stop
    with contextlib.suppress(TrainingError):
        module.check_policy_versions(batch)
    return said


def test_an_update_with_actions_of_another_policy_is_refused(tiny_folder: str) -> None:
    module = build(tiny_folder)
    game = Toy(num_tasks=2)

    def play() -> list[Trajectory]:
        with module.ready_to_sample():
            return Parallel().rollout(
                game, game.tasks("train"), actors_of(module.policies, module.num_rollouts), 1, "cpu"
            )

    module.num_rollouts = 3
    old = play()
    assert told_to_stop(module, collate(old)) == []
    assert module.logged[-1] == ("rollout/policy_version", 3.0)
    module.num_rollouts = 4
    mixed = [old[0], play()[1]]
    for batch in (collate(old), collate(mixed)):
        (reason,) = told_to_stop(module, batch)
        assert "updates, but 4 were made: the update is not on-policy" in reason
    assert "after 3, 4 updates" in reason


def test_a_run_counts_its_updates_over_checkpoints(fit: Callable[..., int], run_folder: Path) -> None:
    args = ["--model=MAGRPO", "--data.num_generations=2", "--data.rollouts_per_epoch=2"]
    assert fit(*args) == 0
    assert list(read_run(run_folder).scalars["rollout/policy_version"].values()) == [0, 1, 2, 3]
    last = run_folder / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["collm"]["num_rollouts"] == 4
    assert fit(*args, "--trainer.max_epochs=3", f"--ckpt_path={last}") == 0
    resumed = read_run(run_folder.with_name("version_1")).scalars["rollout/policy_version"]
    assert list(resumed.values()) == [4, 5]
