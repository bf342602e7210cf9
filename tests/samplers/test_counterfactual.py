from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from actors import actors_of
from collm.algorithms.c3 import counterfactual_groups
from collm.errors import ConfigurationError
from collm.samplers.base import Sampler
from collm.samplers.counterfactual import Counterfactual
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.trajectory import RolloutBatch, collate
from tabular import AGENTS, HISTORIES, TabularPolicy, TwoTurns

GAME = TwoTurns(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.arange(16.0).view(4, 2, 2))


def played(num_tasks: int, num_generations: int, seed: int = 0) -> tuple[RolloutBatch, dict[str, TabularPolicy]]:
    policies = {name: TabularPolicy(torch.zeros(len(HISTORIES), 2)) for name in AGENTS}
    tasks = GAME.tasks("train")[:num_tasks]
    paths = Counterfactual().rollout(GAME, tasks, actors_of(policies), seed, "cpu", num_generations)
    return collate(paths), policies


def test_number_of_responses_and_joint_samples() -> None:
    """K = 3, two agents, two turns: per task 1 + 4 joint actions at the first turn, 1 + 4 and 4 rests at the second."""
    batch, policies = played(2, 3)
    assert batch.joint_samples == 2 * (2 + 2 * 2 * 3) == 28
    assert [path.group for path in batch.trajectories] == [0] * 9 + [1] * 9
    # each agent: 3 at the first turn; 3 for the main episode and 1 in each of 4 others at the second
    assert [policy.num_rows for policy in policies.values()] == [2 * (3 + 3 + 4)] * 2
    assert [policy.num_batches for policy in policies.values()] == [2, 2]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Parallel(), [6, 6]),
        (Tree(), [6, 18]),
        (Tree("cross"), [18, 162]),
        (Counterfactual(), [2 * 5, 2 * (5 + 4)]),  # the main episode branches again, the four others go on
    ],
    ids=lambda value: type(value).__name__,
)
def test_progress_counts_the_joint_actions_that_a_turn_plays(
    sampler: Sampler, expected: list[int], monkeypatch
) -> None:
    """Two tasks, K = 3, two agents, two turns."""
    policies = {name: TabularPolicy(torch.zeros(len(HISTORIES), 2)) for name in AGENTS}
    told: list[tuple[int, int]] = []
    steps: list[int] = []
    step = type(GAME).step
    monkeypatch.setattr(type(GAME), "step", lambda *args: steps.append(len(told)) or step(*args))
    tasks = [replace(GAME.tasks("train")[0], task_id=name) for name in ("one", "other")]
    sampler.rollout(GAME, tasks, actors_of(policies), 0, "cpu", 3, on_turn=lambda *numbers: told.append(numbers))
    assert told == list(enumerate(expected))
    assert [steps.count(turn + 1) for turn in range(2)] == expected


def test_the_others_actions_stay() -> None:
    batch, _ = played(1, 3)
    main, *others = batch.trajectories
    for turn in range(2):
        first = main.turns[turn].actions
        differing = Counter()
        for path in others:
            actions = path.turns[turn].actions
            same_history = turn == 0 or path.turns[0] is main.turns[0]
            if same_history and actions is not first:
                changed = [name for name in AGENTS if actions[name].uid != first[name].uid]
                differing.update(changed if len(changed) == 1 else [])
        assert differing == dict.fromkeys(AGENTS, 2)


def test_groups_compare_responses_to_one_history_beside_the_same_actions() -> None:
    batch, _ = played(2, 3)
    for agent_id in AGENTS:
        groups = counterfactual_groups(batch, agent_id)
        assert Counter(groups.flatten().tolist()) == {-1: 36 - 12, 0: 3, 1: 3, 2: 3, 3: 3}
        for number in range(4):
            members = [(batch.trajectories[row], turn) for row, turn in (groups == number).nonzero().tolist()]
            actions = [path.turns[turn].actions for path, turn in members]
            assert len({own[agent_id].uid for own in actions}) == 3
            assert len({own[name].uid for own in actions for name in AGENTS if name != agent_id}) == 1
            assert len({own[agent_id].prompt_ids[0] for own in actions}) == 1
    assert not (counterfactual_groups(batch, "first")[1:5] == counterfactual_groups(batch, "second")[1:5]).all()


@pytest.mark.parametrize(
    ("num_generations", "most", "message"),
    [(1, 4096, "data.num_generations is 1"), (3, 27, "have 14 joint samples, and 28 in a rollout of 2 tasks")],
)
def test_refused(num_generations: int, most: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Counterfactual(most).check(GAME, 2, num_generations)
    Counterfactual(28).check(GAME, 2, 3)
