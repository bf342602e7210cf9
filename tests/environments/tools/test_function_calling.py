"""The environment of parallel function calls: requests, roles, and agents that know the answer."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from collm.environments.tools.calls import read_calls
from collm.environments.tools.function_calling import FunctionCalling
from collm.errors import ConfigurationError
from collm.trajectory import Action, Trajectory, Turn

SCHEMA = {"name": "f", "parameters": {"type": "dict", "properties": {}}}
ROW = {"id": "a", "question": [[{"role": "user", "content": "Do it"}]], "function": [SCHEMA]}
TRUTH = [{"f": {"x": [1]}}, {"f": {"x": [2], "y": ["", 3]}}, {"f": {"x": [{"k": ["", 5], "l": [6]}]}}]
CATEGORIES = ("parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple")
HAS_BFCL = importlib.util.find_spec("bfcl_eval") is not None


def file(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def own(tmp_path: Path) -> str:
    rows = [{**ROW, "id": str(index), "question": f"Do {index}", "ground_truth": TRUTH} for index in range(3)]
    return file(tmp_path / "own.jsonl", *rows)


def test_agents_see_their_part_the_schemas_and_the_request(own: str) -> None:
    game = FunctionCalling(own, num_eval=1, seed=None, roles="odd_even", num_agents=3)
    _, shown = game.reset(game.tasks("train")[1], random.Random(0))
    assert list(shown) == ["caller_1", "caller_2", "caller_3"]
    assert "write number 2, 5, 8 and so on" in shown["caller_2"]
    assert all(text.endswith(f"Functions:\n{json.dumps(SCHEMA)}\nRequest: Do 1") for text in shown.values())
    parts = {
        roles: FunctionCalling(own, num_eval=1, roles=roles).role(1)
        for roles in ("self_select", "split_by_order", "same_prompt")
    }
    assert "not all of them" in parts["self_select"]
    assert "into 2 parts and write part 2" in parts["split_by_order"]
    assert parts["same_prompt"] == FunctionCalling(own, num_eval=1, num_agents=1).role(0)


def test_models_that_continue_a_text_see_an_example_first(own: str) -> None:
    plain, continued = (
        FunctionCalling(own, num_eval=1, seed=None, prompt=prompt) for prompt in ("instructions", "completion")
    )
    task = plain.tasks("train")[0]
    shown, text = (game.reset(task, random.Random(0))[1]["caller_2"] for game in (plain, continued))
    head, _, rest = shown.partition("\nFunctions:\n")
    assert text.startswith(f"{head}\n\nFunctions:\n")
    assert text.endswith(f"\n\nFunctions:\n{rest}\nCalls:")
    example = text.removeprefix(head).partition("Calls:\n")[2].partition("\n\n")[0]
    assert read_calls(example).valid
    assert [call.name for call in read_calls(example).calls] == ["set_alarm", "set_alarm"]


@pytest.mark.parametrize("roles", ["self_select", "odd_even"])
@pytest.mark.parametrize("num_agents", [1, 2, 3])
@pytest.mark.parametrize(
    "dataset", ["samples", pytest.param("bfcl", marks=pytest.mark.skipif(not HAS_BFCL, reason="bfcl-eval is missing"))]
)
def test_agents_that_know_the_answer_earn_the_most(dataset: str, num_agents: int, roles: Any) -> None:
    game = FunctionCalling(dataset, CATEGORIES, num_agents, roles)
    tasks = [*game.tasks("train"), *game.tasks("eval")]
    assert len(tasks) == {"samples": 24, "bfcl": 440}[dataset]
    for task in tasks:
        state, _ = game.reset(task, random.Random(0))
        step = game.step(state, game.demonstrate(state, random.Random(0)))
        assert step.reward == pytest.approx(1.1), task.task_id
        assert step.terminated
        assert game.state_features(state)["calls"] == len(game.state_text(state).splitlines())


def test_metrics_of_an_episode(own: str) -> None:
    game = FunctionCalling(own, num_eval=1)
    texts = {"caller_1": "f(x=1)\nf(x=2)\nf(x=2)", "caller_2": "f(x={'l': 6})"}
    task = game.tasks("train")[0]
    step = game.step(task, texts)
    trajectory = Trajectory(task, 0, 1, game.max_reward)
    acted = {name: Action(text) for name, text in texts.items()}
    trajectory.turns.append(Turn({}, acted, step.reward, step.terms, step.info))
    assert game.metrics(trajectory) == {
        **{"exact_match": 1.0, "names": 1.0, "arguments": 1.0, "count": 1.0, "balance": 1.0, "parse": 1.0},
        **{"overlap": 0.0, "lazy": 0.0, "extra": 0.0, "duplicate": pytest.approx(1 / 3)},
        **{"calls/caller_1": 3.0, "calls/caller_2": 1.0},
    }
    assert step.reward == pytest.approx(1.1 - 0.05 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ground_truth": None}, "line 1: the field 'ground_truth' is missing or empty"),
        ({"ground_truth": [{"g": {}}]}, r"`ground_truth` must be .* with the names \['f'\]"),
        ({"ground_truth": [{"f": {"x": []}}]}, "`ground_truth` must be"),
        ({"ground_truth": [{"f": {"x": 1}}]}, "`ground_truth` must be"),
        ({"ground_truth": [{"f": {}, "g": {}}]}, "`ground_truth` must be"),
        ({"question": [[{"role": "user"}]]}, "the question must be a text or one list of messages"),
        ({"question": [[], []]}, "the question must be a text"),
        ({"function": {"name": "f"}}, "`function` must be a list of schemas with a `name`"),
        ({"function": ["f"]}, "`function` must be a list"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = file(tmp_path / "bad.jsonl", {**ROW, "ground_truth": TRUTH, **change})
    with pytest.raises(ConfigurationError, match=message):
        FunctionCalling(path)


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    row = {**ROW, "ground_truth": TRUTH}
    with pytest.raises(ConfigurationError, match=r"line 2 repeats the id 'a' of .*line 1"):
        FunctionCalling(file(tmp_path / "twice.jsonl", row, row))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roles": "chaos"}, "roles is 'chaos'; choose one of self_select, split_by_order, odd_even, same_prompt"),
        ({"prompt": "chat"}, "prompt is 'chat'; choose one of instructions, completion"),
        ({"categories": "parallel"}, "categories is 'parallel'; give a list"),
        ({"dataset": "bfcl", "categories": ["simple"]}, "categories: 'simple' is unknown|not installed: pip install"),
        ({"num_eval": 25}, r"ask for more rows than there are \(24 in 'samples'\)"),
        ({"num_agents": 0}, "num_agents is 0"),
        ({"dataset": "nothing.jsonl"}, "there is no such file"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FunctionCalling(**settings)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install --no-deps bfcl-eval"):
        FunctionCalling("bfcl")
