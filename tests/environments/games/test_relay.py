from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from collm.environments.base import check_tasks
from collm.environments.games.relay import Relay
from collm.environments.games.relay_values import history_values
from collm.errors import ConfigurationError
from collm.samplers.base import Episode, act_all
from collm.trajectory import Action, Trajectory


def play(game: Relay, right: Sequence[Sequence[bool]], seed: int = 0, wrong: str = "") -> Trajectory:
    """An episode in which `right` says which agents answer correctly at each turn."""
    episode = Episode(game, game.tasks("train")[0], 0, seed)
    for who in right:
        best = game.demonstrate(episode.state, random.Random(0))
        texts = [text if ok else wrong for text, ok in zip(best.values(), who, strict=True)]
        act_all([episode], [dict(zip(game.agent_ids, map(Action, texts), strict=True))])
    assert episode.done
    episode.trajectory.metrics = game.metrics(episode.trajectory)
    return episode.trajectory


def rewards(trajectory: Trajectory) -> list[float]:
    return [turn.reward for turn in trajectory.turns]


PLAN = [(True, True), (True, False), (False, False), (True, True)]  # two of four turns succeed


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"reward": "dense"}, [1, 0, 0, 1]),
        ({"reward": "sparse"}, [0, 0, 0, 2]),
        ({"reward": "threshold", "threshold": 0.5}, [0, 0, 0, 4]),
        ({"reward": "threshold", "threshold": 0.51}, [0, 0, 0, 0]),
    ],
)
def test_rewards(settings: dict[str, Any], expected: list[float]) -> None:
    trajectory = play(Relay(horizon=4, **settings), PLAN)
    assert rewards(trajectory) == expected
    assert [turn.terms["success"] for turn in trajectory.turns] == [1, 0, 0, 1]
    assert trajectory.metrics == {"success": 0.5, "accuracy": 5 / 8, "invalid": 3 / 8}


@pytest.mark.parametrize(
    ("feedback", "first", "second"),
    [
        ("own", ["ok", "ok", "bad"], ["ok", "bad", "bad"]),
        ("cross", ["ok", "bad", "bad"], ["ok", "ok", "bad"]),  # each reads the other's outcome
        ("none", ["", "", ""], ["", "", ""]),
    ],
)
def test_what_agents_see(feedback: str, first: list[str], second: list[str]) -> None:
    turns = play(Relay(horizon=4, feedback=feedback), PLAN).turns
    for agent_id, feedbacks in (("relay_1", first), ("relay_2", second)):
        seen = [turn.observations[agent_id].split() for turn in turns]
        assert [words[0] if len(words) > 1 else "" for words in seen] == ["", *feedbacks]
        assert all(words[-1].startswith("x") for words in seen)


def test_with_three_agents_feedback_goes_round() -> None:
    turns = play(Relay(num_agents=3, horizon=2), [(True, False, False), (True, True, True)]).turns
    assert [turns[1].observations[f"relay_{n}"].split()[0] for n in (1, 2, 3)] == ["bad", "ok", "bad"]


def test_each_mapping_is_a_permutation_of_its_own_and_each_agent_has_one() -> None:
    games = [Relay(mapping=number) for number in (0, 0, 1)]
    assert games[0].right == games[1].right
    assert games[0].right[0] != games[0].right[1]
    assert games[0].right != games[2].right
    assert all(sorted(table) == list(range(8)) for game in games for table in game.right)


def test_episodes_of_a_group_share_their_words() -> None:
    game = Relay(horizon=8)
    task = game.tasks("train")[0]
    signals = [game.reset(task, random.Random(seed))[0].signals for seed in (0, 0, 1)]
    assert signals[0] == signals[1] != signals[2]
    many = [
        signal for seed in range(200) for pair in game.reset(task, random.Random(seed))[0].signals for signal in pair
    ]
    counts = np.bincount(many, minlength=8) / len(many)
    assert abs(counts - 1 / 8).max() < 4 * (1 / 8 * 7 / 8 / len(many)) ** 0.5


@pytest.mark.parametrize(
    ("text", "action"), [("a3", 3), ("I say a2, not a1", 2), ("a9 a5", 5), ("ba3 3", None), ("", None)]
)
def test_the_first_action_word_counts(text: str, action: int | None) -> None:
    assert Relay().read(text) == action


def test_noise_is_that_of_the_course_of_answers_and_has_the_size_asked_for() -> None:
    game = Relay(horizon=2, noise=3.0)
    right = [(True, True), (True, True)]
    first, again = (play(game, right).turns[-1].reward for _ in range(2))
    other = play(game, [(True, True), (False, True)]).turns[-1].reward
    assert first == again
    assert first - 2 != pytest.approx(other - 1)
    drawn = np.array([rewards(play(game, right, seed)) for seed in range(400)])
    assert (drawn[:, 0] == 0).all()
    assert abs(drawn[:, 1].mean() - 2) < 4 * 3 / 20
    assert abs(drawn[:, 1].std() - 3) < 4 * 3 / 800**0.5


def test_instructions_begin_the_first_observation_only() -> None:
    turns = play(Relay(horizon=2, instructions=True), [(True, True), (True, True)]).turns
    assert "x0 to x7" in turns[0].observations["relay_1"]
    assert "\n" not in turns[1].observations["relay_1"]


def test_tasks() -> None:
    game = Relay(num_tasks=3, num_eval=2)
    check_tasks("Relay", game.tasks("train"), game.tasks("eval"))
    assert (len(game.tasks("train")), len(game.tasks("eval"))) == (3, 2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_agents": 0}, "num_agents is 0"),
        ({"alphabet": 1}, "alphabet is 1"),
        ({"reward": "rare"}, "'rare'.*dense, sparse"),
        ({"feedback": "all"}, "'all'.*own, cross"),
        ({"num_agents": 1}, "single agent"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"noise": -1.0}, "noise is -1.0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Relay(**settings)


# Values


def test_values_worked_by_hand() -> None:
    correct = [[[True, False], [True, True]], [[True, True], [False, True]]]
    probabilities = [[[0.5, 0.2], [0.4, 0.8]], [[0.7, 0.4], [0.6, 0.2]]]
    # means: turn 0: 0.6, 0.3; turn 1: 0.5, 0.5
    joint = [[0.1 + 0.25, 0 + 0.32], [0.28 + 0.25, 1 + 0.12]]
    first_own = [[0.5 * 0.3 + 0.25, 1 * 0.3 + 0.4 * 0.5], [0.7 * 0.3 + 0.25, 1 * 0.3 + 0.6 * 0.5]]
    second_own = [[0.6 * 0.2 + 0.25, 0 + 0.5 * 0.8], [0.6 * 0.4 + 0.25, 0.6 * 1 + 0.5 * 0.2]]
    first_cross = [[0.4, 0 + 0.2], [0.46, 1 + 0.3]]
    second_cross = [[0.37, 0 + 0.4], [0.49, 1 + 0.1]]
    own = np.stack([joint, first_own, second_own], axis=2)
    np.testing.assert_allclose(history_values(correct, probabilities, "own", True), own)
    np.testing.assert_allclose(history_values(correct, probabilities, "none", True), own)
    cross = np.stack([joint, first_cross, second_cross], axis=2)
    np.testing.assert_allclose(history_values(correct, probabilities, "cross", True), cross)
    np.testing.assert_allclose(
        history_values(correct, probabilities, "own", False)[..., 0], [[0.35, 0.32], [0.53, 0.12]]
    )


@pytest.mark.parametrize("feedback", ["own", "cross", "none"])
@pytest.mark.parametrize(("reward", "num_agents"), [("sparse", 2), ("dense", 2), ("sparse", 3)])
def test_values_are_conditional_expectations_where_policies_have_no_memory(
    feedback: str, reward: str, num_agents: int
) -> None:
    """Every course of a game of two turns and two words, against means over all that share a history."""
    probability_table = np.random.default_rng(0).uniform(0.1, 0.9, (num_agents, 2))  # of being right, by agent and word
    words = list(product(range(2), repeat=num_agents))
    outcomes = list(product([False, True], repeat=num_agents))
    courses = list(product(words, words, outcomes, outcomes))
    correct = np.array([course[2:] for course in courses])
    seen = np.array([course[:2] for course in courses])
    probabilities = probability_table[np.arange(num_agents), seen]
    likely = np.where(correct, probabilities, 1 - probabilities).prod((1, 2))
    success = correct.all(2).astype(float)
    to_go = np.stack([success.sum(1), success.sum(1) if reward == "sparse" else success[:, 1]], axis=1)
    values = history_values(correct, probabilities, feedback, reward == "sparse")

    def history(course: int, turn: int, owner: int | None) -> tuple:
        agents = range(num_agents) if owner is None else [owner]
        known = set(agents)  # the correct answers determine the outcomes of the agent itself
        if feedback == "cross" and owner is not None:
            known |= {(owner - 1) % num_agents}
        visible = [tuple(correct[course, :turn, agent]) for agent in sorted(known)]
        return (tuple(map(tuple, seen[course, : turn + 1, list(agents)])), tuple(visible))

    for column, owner in enumerate((None, *range(num_agents))):
        for turn in range(2):
            keys = [history(course, turn, owner) for course in range(len(courses))]
            means: dict[tuple, list[float]] = {}
            for key, weight, worth in zip(keys, likely, to_go[:, turn], strict=True):
                total = means.setdefault(key, [0.0, 0.0])
                total[0] += weight * worth
                total[1] += weight
            expected = [means[key][0] / means[key][1] for key in keys]
            np.testing.assert_allclose(values[:, turn, column], expected, atol=1e-12)


def test_the_threshold_is_met_where_rounding_is_against_it() -> None:
    game = Relay(num_agents=1, horizon=25, feedback="own", reward="threshold", threshold=0.28)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    for turn in range(25):
        right = game.demonstrate(state, random.Random(0))
        step = game.step(state, right if turn < 7 else {"relay_1": ""})
        state = step.state
    assert step.reward == 25  # 7 of 25 turns are the share 0.28, although 0.28 * 25 is 7.000000000000001


def test_right_answers_and_values() -> None:
    game = Relay(horizon=4, feedback="own")
    trajectory = play(game, PLAN)
    answers = game.right_answers(trajectory)
    assert len(answers) == 4
    assert answers[0] == {name: turn.text for name, turn in trajectory.turns[0].actions.items()}
    probabilities = [dict.fromkeys(game.agent_ids, 0.5)] * 4
    (values,) = game.values([trajectory], [probabilities])
    assert values[0] == {"team": 1.0, "relay_1": 1.0, "relay_2": 1.0}
    assert values[2] == {"team": 1.5, "relay_1": 0.5 + 0.5 + 0.5, "relay_2": 0.5 + 0.5}
    with pytest.raises(ConfigurationError, match="'dense' and 'sparse' only"):
        Relay(reward="threshold").values([trajectory], [probabilities])
