"""Questions of reasoning-gym that are dealt out to a team, and answers worked by hand."""

from __future__ import annotations

import random
import sys
import types
from typing import Any

import pytest

from collm.environments.adapters.reasoning import ReasoningGym, is_right
from collm.errors import ConfigurationError
from collm.trajectory import Action, Trajectory, Turn

TEXT = "Zion is married to Nova. They have a child. The child is Thomas.\nWho is Thomas? Answer with one word."


class Generator:
    """Stands in for a generator of the package: the first `different` questions differ."""

    answer = "child"

    def __init__(self, size: int, seed: int, different: int = 1000):
        assert different > 0, "different must be positive"
        self.size, self.seed, self.different = size, seed, different

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"question": f"{self.seed} {index % self.different}. {TEXT}", "answer": self.answer}


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_dataset(name: str, **options: Any) -> Generator:
        if name != "family_relationships":
            raise ValueError(f"Dataset {name} not registered")
        return Generator(**options)

    monkeypatch.setitem(sys.modules, "reasoning_gym", types.SimpleNamespace(create_dataset=create_dataset))


@pytest.mark.usefixtures("generator")
def test_sentences_are_dealt_out_and_the_last_one_is_for_all() -> None:
    game = ReasoningGym(num_agents=2)
    state, shown = game.reset(game.tasks("train")[0], random.Random(0))
    asked = "Write a message to the others, at most 200 characters. The others know other parts of the question."
    own = "0 0.\n[...]\nThey have a child.\n[...]\nWho is Thomas?\nAnswer with one word."
    others = "[...]\nZion is married to Nova.\n[...]\nThe child is Thomas.\n[...]\nAnswer with one word."
    assert shown == {"solver_1": f"{own}\n{asked}", "solver_2": f"{others}\n{asked}"}
    assert game.state_text(state).endswith("Answer with one word.\nAnswer: child")
    alone = ReasoningGym(num_agents=1, horizon=1)
    _, shown = alone.reset(alone.tasks("train")[0], random.Random(0))
    assert shown["solver_1"] == f"0 0. {TEXT}\nWrite the answer alone, in one line."


@pytest.mark.usefixtures("generator")
def test_messages_reach_the_others_and_answers_are_judged() -> None:
    game = ReasoningGym(num_agents=3, message_characters=5)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    step = game.step(state, {"solver_1": "a child of Nova", "solver_2": "", "solver_3": " yes "})
    assert step.reward == 0.0
    assert step.observations["solver_2"] == "solver_1: a chi\nsolver_3: yes\nWrite the answer alone, in one line."
    assert game.state_features(step.state)["answer_was_told"] == 0.0
    assert game.state_text(step.state).endswith("solver_1: a chi\nsolver_2: \nsolver_3: yes")
    last = game.step(step.state, {"solver_1": "Answer: Child.", "solver_2": "the wife", "solver_3": "Hm.\nchild"})
    assert (last.reward, last.terminated) == (pytest.approx(2 / 3), True)
    picture = game.render_turn(last.state)
    assert "solver_2 is wrong" in picture
    assert "solver_3 is right" in picture
    trajectory = Trajectory(state.task, 0, 2, 1.0)
    trajectory.turns.append(Turn({}, {"solver_1": Action("")}, last.reward, last.terms, last.info))
    assert game.metrics(trajectory) == {"all_right": 0.0, "any_right": 1.0}
    told = game.step(state, {"solver_1": "child", "solver_2": "", "solver_3": ""})
    assert game.state_features(told.state)["answer_was_told"] == 1.0


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("wife", "wife", True),
        ("I think:\nWife.", "wife", True),
        ("The answer is wife", "wife", True),
        ("Final answer: 1,024.0", "1024", True),
        ("**61**", "61", True),
        ("61 units", "61", False),
        ("wife\nhusband", "wife", False),
        ("", "wife", False),
        ("   \n", "", False),
        ("['-1', '2']", "['-1', '2']", True),
        ("nan", "5", False),
        (".5", "5", False),
        (".5", "0.5", True),
        ("Answer: **.5**.", "0.5", True),
        ("-.5", "-0.5", True),
        ("5.", "5", True),
        ("7 4 1\n8 5 2\n9 6 3", "7 4 1\n8 5 2\n9 6 3", True),
        ("Answer:\n7 4 1\n8 5 2\n9 6 3\n", "7 4 1\n8 5 2\n9 6 3", True),
        ("7 4 1\n8 5 2\n9 6 4", "7 4 1\n8 5 2\n9 6 3", False),
        ("9 6 3", "7 4 1\n8 5 2\n9 6 3", False),
        ("\n".join(["1 2 3 4 5"] * 300), "\n".join(["1 2 3 4 5"] * 300), True),  # 3,000 characters
        ("\n".join(["1 2 3 4 5"] * 700), "\n".join(["1 2 3 4 5"] * 300), False),
        ("9" * 3000, "9" * 10, False),
        ("__import__('os').abort()", "0", False),
    ],
)
def test_answers_by_hand(response: str, answer: str, expected: bool) -> None:
    assert is_right(response, answer) is expected


@pytest.mark.usefixtures("generator")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "nothing"}, "no questions of 'nothing' with the options {} .ValueError: Dataset nothing not"),
        ({"options": {"different": 0}}, "with the options {'different': 0} .AssertionError: different must be"),
        ({"options": {"different": 3}}, "has 3 different questions with an answer among 128, fewer than 64; lower num"),
        ({"share": "words"}, "share is 'words'; choose one of sentences, all"),
        ({"message_characters": 0}, "message_characters is 0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ReasoningGym(**settings)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'collm\[reasoning\]'"):
        ReasoningGym()


@pytest.mark.usefixtures("generator")
def test_an_answer_of_several_lines_is_asked_for_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "answer", "7 4 1\n8 5 2\n9 6 3")
    game = ReasoningGym(horizon=1)
    state, shown = game.reset(game.tasks("train")[0], random.Random(0))
    assert shown["solver_1"].endswith("\nWrite the answer alone.")
    assert game.step(state, game.demonstrate(state, random.Random(0))).reward == 1.0


@pytest.mark.parametrize(
    "dataset", ["family_relationships", "simple_equations", "zebra_puzzles", "rotate_matrix", "sudoku"]
)
def test_questions_of_the_package_itself(dataset: str) -> None:
    pytest.importorskip("reasoning_gym")
    game = ReasoningGym(dataset, num_train=6, num_eval=4)
    questions = [task.data["question"] for split in ("train", "eval") for task in game.tasks(split)]
    assert len(set(questions)) == 10
    state, _ = game.reset(game.tasks("eval")[0], random.Random(0))
    step = game.step(
        game.step(state, game.demonstrate(state, random.Random(0))).state, game.demonstrate(state, random.Random(0))
    )
    assert step.reward == 1.0
