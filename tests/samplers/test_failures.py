"""Environments that fail: tried again with the same actions, then left out, and counted by cause."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from actors import Scripted, actors_of
from collm.data import RolloutDataModule
from collm.environments.base import EpisodeFailure, Step
from collm.errors import ConfigurationError
from collm.metrics import episode_numbers, groups_of_one, summarized
from collm.samplers.base import Sampler
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, collate, without_failed
from enumerated import FIRST, SECOND, make_policies
from tabular import State, TwoTurns
from toy import Toy


class Fragile(TwoTurns):
    """Fails on the calls to `step` (or to `reset`) with these numbers, which it counts; states are used once."""

    def __init__(self, steps: Sequence[int] = (), resets: Sequence[int] = (), shows: str = "0", cause: str = "sandbox"):
        super().__init__(FIRST, SECOND)
        self.failing = {"step": set(steps), "reset": set(resets)}
        self.calls = {"step": 0, "reset": 0}
        self.shows, self.cause = shows, cause

    def count(self, name: str) -> None:
        self.calls[name] += 1
        if self.calls[name] - 1 in self.failing[name]:
            raise EpisodeFailure(f"{name} {self.calls[name] - 1}", self.cause)

    def reset(self, task: Task, rng: random.Random) -> tuple[State, dict[str, str]]:
        self.count("reset")
        return super().reset(task, rng)

    def step(self, state: State, joint_action: Mapping[str, str]) -> Step:
        turn = state.turn
        step = super().step(state, joint_action)  # which leaves the state broken if it fails
        self.count("step")
        if turn == 0 and self.calls["step"] > 2:
            step.observations["second"] = self.shows
        return step


def play(game: TwoTurns, sampler: Sampler | None = None, num: int = 2, retries: int = 1) -> list[Trajectory]:
    """Episodes of one task, by policies that draw the same numbers whenever they are asked as often."""
    return (sampler or Parallel()).rollout(
        game, game.tasks("train")[:1], actors_of(make_policies()), 3, "cpu", num, retries=retries
    )


def told(trajectory: Trajectory) -> dict:
    """All that is recorded of an episode but its failures and the unique ids of its actions."""
    record = trajectory.record()
    turns = [{name: value for name, value in turn.items() if name != "branch"} for turn in record["turns"]]
    return {"turns": turns, **{name: record[name] for name in ("task_id", "return", "metrics")}}


@pytest.mark.parametrize("failing", [0, 1, 2, 3])  # both episodes' first turns, then both second turns
@pytest.mark.parametrize("retries", [1, 2])
def test_a_retry_leaves_no_trace_but_the_failure(failing: int, retries: int) -> None:
    game = Fragile([failing])
    found = play(game, retries=retries)
    assert list(map(told, found)) == list(map(told, play(TwoTurns(FIRST, SECOND))))
    assert [one.error for one in found] == [None, None]
    expected = [[], []]
    expected[failing % 2] = [("sandbox", f"step {failing}")]
    assert [one.failures for one in found] == expected
    # a fresh state each time: one more reset, and the first turn once more where the second one failed
    assert game.calls == {"reset": 3, "step": 5 + failing // 2}


def test_an_episode_that_fails_again_has_failed() -> None:
    kept, failed = play(Fragile([3, 5]))  # 4 repeats the first turn
    assert (kept.error, len(kept.turns)) == (None, 2)
    assert (failed.error, len(failed.turns)) == ("step 5", 1)
    assert failed.failures == [("sandbox", "step 3"), ("sandbox", "step 5")]
    _, once = play(Fragile([3]), retries=0)
    assert (once.error, once.failures) == ("step 3", [("sandbox", "step 3")])
    _, repeating = play(Fragile([3, 4]))  # fails while the first turn is repeated
    assert (repeating.error, len(repeating.turns)) == ("step 4", 1)


def test_a_failure_while_turns_are_repeated_leaves_no_trace_either() -> None:
    """Steps: turn 1; turn 2, which fails; turn 1 again, which fails; turn 1 again; turn 2 again."""

    class Shaky(Toy):
        calls = 0

        def step(self, state: tuple[Task, int], joint_action: Mapping[str, str]) -> Step:
            self.calls += 1
            if self.calls in (2, 3):
                raise EpisodeFailure(f"step {self.calls}", "sandbox")
            return super().step(state, joint_action)

    def played(game: Toy) -> Trajectory:
        actors = actors_of({name: Signed(name) for name in game.agent_ids})
        return Parallel().rollout(game, game.tasks("train")[:1], actors, 0, "cpu", 1, retries=2)[0]

    found = played(game := Shaky())
    assert (found.error, found.failures) == (None, [("sandbox", "step 2"), ("sandbox", "step 3")])
    assert told(found) == told(played(Toy()))
    assert game.calls == 5


@pytest.mark.parametrize("sampler", [Parallel(), Tree()], ids=["parallel", "tree"])
def test_an_environment_that_cannot_begin_is_tried_again_and_then_fails(sampler: Sampler) -> None:
    (found,) = play(Fragile(resets=[0]), sampler, 1)
    assert (found.error, len(found.turns), found.failures) == (None, 2, [("sandbox", "reset 0")])
    (found,) = play(Fragile(resets=[0, 1]), sampler, 1)
    assert (found.error, found.turns) == ("reset 1", [])
    assert found.failures == [("sandbox", "reset 0"), ("sandbox", "reset 1")]


def test_an_environment_that_shows_something_else_the_second_time_is_not_trusted() -> None:
    _, failed = play(Fragile([3], shows="1"))
    assert failed.failures == [
        ("sandbox", "step 3"),
        ("repetition", "a fresh episode did not repeat what agents had been shown"),
    ]
    assert failed.error == failed.failures[1][1]


@pytest.mark.parametrize("cause", ["", "a b", "a/b", "ünter"])
def test_causes_are_names(cause: str) -> None:
    with pytest.raises(ValueError, match="the cause of an EpisodeFailure is"):
        EpisodeFailure("broke", cause)


def test_branches_of_a_tree_are_tried_again_on_their_own() -> None:
    # two at the root, then two below each: steps 0 1, 2 3 4 5; the retry of 4 repeats the first turn with step 6
    found = play(Fragile([4]), Tree())
    assert list(map(told, found)) == list(map(told, play(TwoTurns(FIRST, SECOND), Tree())))
    assert [one.failures for one in found] == [[], [], [("sandbox", "step 4")], []]
    found = play(Fragile([0]), Tree())  # a failure of a turn that two paths share counts once
    assert [one.failures for one in found] == [[("sandbox", "step 0")], [], [], []]


# What is left


def module(game: TwoTurns, **kwargs) -> RolloutDataModule:
    data = RolloutDataModule(game, Parallel(), tasks_per_rollout=1, num_generations=3, **kwargs)
    policies = make_policies()
    learner = SimpleNamespace(
        policies=policies, specs={}, device="cpu", num_rollouts=0, ready_to_sample=contextlib.nullcontext
    )
    data.trainer = SimpleNamespace(lightning_module=learner)
    data._actors = Scripted(policies)
    return data


def rollout(**kwargs) -> RolloutBatch:
    """Three episodes, of which the second fails in its second turn, twice."""
    data = module(Fragile([4, 7]), **kwargs)
    return data.play(data.sampler, data.environment.tasks("train")[:1], 3, 3)


def test_a_failed_episode_is_left_out() -> None:
    batch = rollout()
    assert [len(one.turns) for one in batch.trajectories] == [2, 2]
    assert batch.turn_mask.all()
    assert batch.rewards.shape == (2, 2)
    assert [one.error for one in batch.left_out] == ["step 7"]
    assert batch.joint_samples == 2 + 2 + 1
    assert batch.to(torch.device("cpu")).left_out == batch.left_out
    numbers = summarized(episode_numbers(batch))
    assert (numbers["failed"], numbers["failed/sandbox"], numbers["turns"]) == (pytest.approx(1 / 3), 2.0, 2.0)
    assert numbers["return"] == pytest.approx(batch.rewards.sum().item() / 2)
    assert groups_of_one(batch) == 0


def test_a_failed_episode_may_count_with_what_it_has() -> None:
    batch = rollout(failed_episodes="zero")
    assert batch.turn_mask.tolist() == [[True, True], [True, False], [True, True]]
    assert batch.left_out == []
    numbers = summarized(episode_numbers(batch))
    assert (numbers["failed"], numbers["turns"]) == (pytest.approx(1 / 3), pytest.approx(5 / 3))


def test_without_retries_a_failure_is_final() -> None:
    numbers = summarized(episode_numbers(rollout(episode_retries=0)))
    assert (numbers["failed"], numbers["failed/sandbox"]) == (pytest.approx(1 / 3), 1.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"episode_retries": -1}, "data.episode_retries is -1; it must be a whole number of at least 0"),
        ({"failed_episodes": "keep"}, "data.failed_episodes is 'keep'; choose one of drop, zero"),
    ],
)
def test_settings_that_make_no_sense(kwargs: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        module(TwoTurns(FIRST, SECOND), **kwargs)


def test_an_environment_that_cannot_begin_at_all_says_so_at_setup() -> None:
    data = module(Fragile(resets=range(99)))
    data.trainer.lightning_module.dialogues = dict
    with pytest.raises(ConfigurationError, match="Fragile could not begin task 'train 0': reset 0"):
        data.setup("fit")


def test_the_group_is_those_left() -> None:
    """Group means over the members that were finished, and a group of one teaches nothing."""
    found = [*play(Fragile([4, 7]), num=3), *play(Fragile([3, 5]))]
    for one in found[3:]:
        one.group = 1
    left, failed = without_failed(found)
    batch = collate(left, 0.0, failed)
    assert batch.groups.tolist() == [0, 0, 1]
    assert groups_of_one(batch) == 1


def test_paths_of_a_tree_that_are_left_share_the_weight_of_those_that_are_not() -> None:
    """K = 3 with weights of 1/9. One leaf of the first node fails, all of the second, none of the third."""
    found = play(TwoTurns(FIRST, SECOND), Tree(), 3)
    assert [one.weight for one in found] == [pytest.approx(1 / 9)] * 9
    for index in (0, 3, 4, 5):
        found[index].error = "broke"
        del found[index].turns[1]
    left, failed = without_failed(found)
    assert [one.weight for one in left] == [1 / 4, 1 / 4, *[1 / 6] * 3]  # half of it at each node left, then evenly
    batch = collate(left, 0.0, failed)
    assert_close(batch.weights, torch.tensor([5 / 4, 5 / 4, *[5 / 6] * 3]))  # mean 1
    assert batch.joint_samples == 8  # all three first turns and five of nine second ones
    assert groups_of_one(batch) == 0
    found[1].error = "broke"
    del found[1].turns[1]
    left, failed = without_failed(found)
    assert [one.weight for one in left] == [1 / 2, *[1 / 6] * 3]
    assert groups_of_one(collate(left, 0.0, failed)) == 1


def test_trees_without_failures_keep_their_weights() -> None:
    found = play(TwoTurns(FIRST, SECOND, stop_at=3), Tree(), 3)
    weights = [one.weight for one in found]
    left, failed = without_failed(found)
    assert (left, failed) == (found, [])
    assert [one.weight for one in left] == weights


# Whose words and whose chance


class Signed:
    """Writes its own name."""

    def __init__(self, name: str):
        self.name = name

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        return [1]

    def sample(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, greedy: bool) -> list[Action]:
        return [Action(f"{self.name} {index}", prompt, [1], [0.0]) for index, prompt in enumerate(prompts)]


class Lottery(Toy):
    """Shows every agent numbers that are drawn when the episode begins."""

    def reset(self, task: Task, rng: random.Random) -> tuple:
        state, shown = super().reset(task, rng)
        return state, {name: f"{text} {rng.random()}" for name, text in shown.items()}


def test_crossed_joint_actions_give_every_agent_its_own_responses() -> None:
    game = Toy(horizon=1, num_tasks=1)
    policies = {name: Signed(name) for name in game.agent_ids}
    paths = Tree("cross").rollout(game, game.tasks("train"), actors_of(policies), 0, "cpu", 2)
    written = [{name: action.text for name, action in path.turns[0].actions.items()} for path in paths]
    assert written == [{"a1": f"a1 {one}", "a2": f"a2 {other}"} for one in (0, 1) for other in (0, 1)]


def test_episodes_of_a_task_share_the_chance_of_the_environment_and_tasks_do_not() -> None:
    game = Lottery(horizon=1, num_tasks=2)
    policies = {name: Signed(name) for name in game.agent_ids}
    found = Parallel().rollout(game, game.tasks("train"), actors_of(policies), 0, "cpu", 3)
    numbers = [path.turns[0].observations["a1"].split()[-1] for path in found]
    assert [numbers.count(number) for number in numbers] == [3] * 6
    assert numbers[0] != numbers[3]
