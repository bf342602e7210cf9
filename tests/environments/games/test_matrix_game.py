from __future__ import annotations

import random
from typing import Any

import pytest

from collm.environments.base import check_tasks
from collm.environments.games.matrix_game import MatrixGame
from collm.errors import ConfigurationError
from collm.trajectory import Action, Trajectory, Turn


def play(game: MatrixGame, *texts: str) -> tuple[float, dict[str, Any]]:
    """Reward and info of one joint action."""
    state, observations = game.reset(game.tasks("train")[0], random.Random(0))
    assert list(observations) == list(game.agent_ids)
    step = game.step(state, dict(zip(game.agent_ids, texts, strict=True)))
    assert step.terminated
    assert step.observations == {}
    assert step.terms == {"payoff": step.reward}
    return step.reward, step.info


def test_the_first_action_word_counts() -> None:
    game = MatrixGame()
    assert play(game, "0", "I say 0, not 1.")[0] == 1.0
    assert play(game, "1", "1 0")[0] == 0.5
    assert play(game, "0", "1")[0] == 0.0
    assert play(game, "10 1", "(1)")[0] == 0.5  # 10 is another word


def test_a_response_without_action_gets_the_smallest_payoff_and_is_counted() -> None:
    reward, info = play(MatrixGame([[3.0, -1.0], [2.0, 5.0]]), "0", "none")
    assert reward == -1.0
    assert info == {"actions": {"player_1": "0", "player_2": None}, "invalid": ["player_2"]}
    assert play(MatrixGame([[3.0, -1.0], [2.0, 5.0]], invalid_reward=-7), "", "")[0] == -7.0


def test_a_table_can_have_entries_for_responses_without_action() -> None:
    game = MatrixGame([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert [play(game, a, b)[0] for a in ("0", "1", "?") for b in ("0", "1", "?")] == list(range(1, 10))
    assert (game.min_reward, game.max_reward) == (1.0, 9.0)


@pytest.mark.parametrize("num_agents", [1, 2, 3])
def test_one_level_of_lists_per_agent(num_agents: int) -> None:
    payoff: Any = 1.0
    for _ in range(num_agents):
        payoff = [payoff, payoff]
    game = MatrixGame(payoff, ["yes", "no"])
    assert game.agent_ids == tuple(f"player_{index + 1}" for index in range(num_agents))
    assert play(game, *["no"] * num_agents)[0] == 1.0


def test_the_index_order_is_that_of_the_agents() -> None:
    game = MatrixGame([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    assert play(game, "1", "0", "1")[0] == 5.0  # binary 101


def test_metrics() -> None:
    game = MatrixGame()

    def metrics(*texts: str) -> dict[str, float]:
        reward, info = play(game, *texts)
        actions = {name: Action(text) for name, text in zip(game.agent_ids, texts, strict=True)}
        return game.metrics(Trajectory(game.tasks("train")[0], 0, 1, 1.0, [Turn({}, actions, reward, info=info)]))

    assert metrics("0", "0") == {"optimal": 1.0, "invalid": 0.0}
    assert metrics("1", "x") == {"optimal": 0.0, "invalid": 0.5}


def test_tasks_are_names_of_the_same_game() -> None:
    game = MatrixGame(num_games=3, num_eval=2)
    assert [task.task_id for task in game.tasks("train")] == ["game 0", "game 1", "game 2"]
    assert [task.task_id for task in game.tasks("eval")] == ["game 3", "game 4"]
    check_tasks("MatrixGame", game.tasks("train"), game.tasks("eval"))
    shown = {str(game.reset(task, random.Random(0))[1]) for split in ("train", "eval") for task in game.tasks(split)}
    assert len(shown) == 1


def test_demonstrations_are_actions() -> None:
    game = MatrixGame(actions=["left", "right"])
    shown = game.demonstrate(game.reset(game.tasks("train")[0], random.Random(0))[0], random.Random(0))
    assert play(game, *shown.values())[1]["invalid"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"payoff": 3}, "nested lists"),
        ({"payoff": []}, "nested lists"),
        ({"payoff": [[1, 2], [3]]}, "every list in it needs 2"),
        ({"payoff": [[1, 2, 3], [4, 5, 6], [7, 8]]}, "every list in it needs 2"),
        ({"payoff": [1, 2, 3, 4]}, "every list in it needs 2"),
        ({"payoff": [[1, 2], [3, "x"]]}, "payoff at \\[1, 1\\] is 'x'"),
        ({"payoff": [[1, 2, 0], [3, 4, 0], [0, 0, 0]], "invalid_reward": 1.0}, "remove one"),
        ({"actions": ["a"]}, "two or more different words"),
        ({"actions": ["a", "a"]}, "two or more different words"),
        ({"actions": ["a b", "c"]}, "no word"),
        ({"num_games": 0}, "num_games is 0"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MatrixGame(**arguments)
