"""Any reward function as a task: data, templates, both forms of functions, and every mistake in them."""

from __future__ import annotations

import gzip
import importlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collm.environments import rows
from collm.environments.base import EpisodeFailure
from collm.environments.calls import _Worker
from collm.environments.example_rewards import fence
from collm.environments.reward_function import RewardFunctionTask
from collm.environments.templates import Template
from collm.errors import ConfigurationError, TrainingError
from collm.trajectory import Action, Trajectory, Turn

ROWS = [{"word": f"w{index}", "size": index, "prompt": f"say w{index}"} for index in range(4)]
TEMPLATES = {"a": "Say {word}.", "b": "Say {{{word}}} of {size}"}
FUNCTIONS = """
import asyncio
import time
from collm.environments.base import EpisodeFailure

def number(fields, texts):
    return sum(fields["word"] in text for text in texts.values()) / 2

def terms(fields, texts):
    fields["word"] = texts["a"] = "changed"
    return {"said": 0.5, "missed": -0.25}, {"cost": 3}

def nan(fields, texts):
    return float("nan")

def text(fields, texts):
    return "much"

def large(fields, texts):
    return 7

def breaks(fields, texts):
    return fields["wrod"]

def leaves(fields, texts):
    raise SystemExit

def outage(fields, texts):
    raise EpisodeFailure("no line", cause="line")

def slow(fields, texts):
    time.sleep(0.0 if texts["a"] == "quick" else 5.0)
    return 1.0

def named_return(fields, texts):
    return 0.5, {"return": 3}

def one_argument(fields):
    return 0

def earlier(fields, texts, history):
    return len(history) / 10

def hint(fields, texts, history):
    return None if texts["a"] == "stop" else {"a": f"after {len(history)}", "b": texts["a"]}

def deaf(fields, texts):
    return {"a": "only one"}

def trl(completions, word, **kwargs):
    assert "prompt" not in kwargs and kwargs["prompts"][0].startswith("say")
    return [float(right in text) for right, text in zip(word, completions)]

def trl_chat(prompts, completions, size, **kwargs):
    assert all(role == "user" for (message,) in prompts for role in [message["role"]])
    return [float(message == {"role": "assistant", "content": "yes"}) for (message,) in completions]

def trl_hint(completions, word, size, hint, prompts):
    return [float(each == "h") for each in hint]

def trl_tokens(completions, completion_ids):
    return [0.0 for _ in completions]

def trl_short(completions, **kwargs):
    return [0.5][: len(completions) - 1]

running = most = 0

async def waits(fields, texts):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(9 if texts["a"] == "never" else 0.02)
    running -= 1
    return 1.0

async def departs(fields, texts):
    raise SystemExit(texts["a"])

begun = []

def counted(fields, texts):
    begun.append(int(texts["a"]))
    time.sleep(0.6 if texts["a"] == "0" else 0.15)
    return 1.0

upper = str.upper  # a routine without a module

async def blocks(fields, texts):
    time.sleep(9)

value = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder, with functions and data, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("import nothing_here\n")
    write(tmp_path / "rows.jsonl", ROWS)
    yield tmp_path
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def task(reward: str = "mine.number", **settings: Any) -> RewardFunctionTask:
    return RewardFunctionTask(
        **{"dataset": "rows.jsonl", "reward": reward, "templates": TEMPLATES, "num_eval": 1, **settings}
    )


def first(game: RewardFunctionTask, **texts: str) -> Any:
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    return game.step(state, texts)


def test_agents_are_shown_their_templates_and_paid_what_the_function_returns() -> None:
    game = task()
    assert game.agent_ids == ("a", "b")
    assert [len(game.tasks(split)) for split in ("train", "eval")] == [3, 1]
    state, shown = game.reset(game.tasks("train")[2], random.Random(0))
    assert shown == {"a": "Say w2.", "b": "Say {w2} of 2"}
    step = game.step(state, {"a": "w2", "b": "w1"})
    assert (step.reward, step.terms, step.terminated, step.observations) == (0.5, {}, True, {})
    assert game.state_text(state) == "word: w2\nsize: 2\nprompt: say w2"
    assert game.state_features(step.state) == {"last_reward": 0.5, "best_reward": 0.5}


def test_terms_are_summed_metrics_are_logged_and_arguments_are_copies() -> None:
    game = task("mine.terms")
    step = first(game, a="x", b="y")
    assert (step.reward, step.terms) == (0.25, {"said": 0.5, "missed": -0.25})
    assert game.tasks("train")[0].data["word"] == "w0"
    assert step.state.history == ({"a": "x", "b": "y"},)
    assert game.state_text(step.state).endswith("\nreward 0.25 (said 0.50, missed -0.25)")
    trajectory = Trajectory(game.tasks("train")[0], 0, 1, 1.0)
    turn = Turn({}, {"a": Action("x")}, step.reward, step.terms, step.info)
    trajectory.turns += [turn, turn]
    assert game.metrics(trajectory) == {"cost": 6.0}


def test_several_turns_with_feedback_and_an_early_end() -> None:
    game = task("mine.earlier", feedback="mine.hint", horizon=3)
    one = first(game, a="x", b="")
    assert (one.reward, one.observations, one.terminated) == (0.0, {"a": "after 0", "b": "x"}, False)
    assert ">a: x<" in game.render_turn(one.state)
    two = game.step(one.state, {"a": "y", "b": ""})
    assert (two.reward, two.observations) == (0.1, {"a": "after 1", "b": "y"})
    three = game.step(two.state, {"a": "y", "b": ""})
    assert (three.reward, three.observations, three.terminated) == (0.2, {}, True)
    assert game.state_features(three.state) == {"last_reward": 0.2, "best_reward": 0.2}
    assert game.step(one.state, {"a": "stop", "b": ""}).terminated


# Functions of TRL


@pytest.mark.parametrize("with_hint", [0, 1, 2])
def test_columns_are_the_same_whichever_row_comes_first(folder: Path, with_hint: int) -> None:
    found = [{**row, **({"hint": "h"} if index == with_hint else {})} for index, row in enumerate(ROWS)]
    game = task("mine.trl_hint", templates=None, dataset=write(folder / "hints.jsonl", found))
    states = [game.reset(each, random.Random(0))[0] for each in game.tasks("train")]
    for order in ([0, 1, 2], [2, 1, 0], [1]):
        steps = game.step_batch([states[index] for index in order], [{"agent": ""}] * len(order))
        assert [step.reward for step in steps] == [float(index == with_hint) for index in order]


def test_a_function_of_trl_is_called_once_for_all_episodes_with_columns() -> None:
    game = task("mine.trl", templates=None)
    assert game.agent_ids == ("agent",)
    states = [game.reset(each, random.Random(0))[0] for each in game.tasks("train")]
    assert game.reset(game.tasks("train")[1], random.Random(0))[1] == {"agent": "say w1"}
    steps = game.step_batch(states, [{"agent": "w0"}, {"agent": "w0"}, {"agent": "it is w2"}])
    assert [step.reward for step in steps] == [1.0, 0.0, 1.0]


def test_prompts_of_messages_give_completions_of_messages(folder: Path) -> None:
    chat = [{"prompt": [{"role": "user", "content": f"Really? {index}"}], "size": index} for index in range(3)]
    game = task("mine.trl_chat", templates=None, dataset=write(folder / "chat.jsonl", chat))
    assert game.reset(game.tasks("train")[1], random.Random(0))[1] == {"agent": "Really? 1"}
    assert [first(game, agent=text).reward for text in ("yes", "no")] == [1.0, 0.0]
    chat[1]["prompt"].append({"role": "assistant", "content": "Yes."})
    with pytest.raises(
        ConfigurationError, match=r"chat.jsonl line 2: 'prompt' holds a message of the role 'assistant'"
    ):
        task("mine.trl_chat", templates=None, dataset=write(folder / "chat.jsonl", chat))


# Asynchronous functions and time limits


def test_asynchronous_calls_run_side_by_side_up_to_the_limit() -> None:
    game = task("mine.waits", max_concurrent=3, seconds=0.5)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    steps = game.step_batch([state] * 7, [{"a": "", "b": ""}] * 7)
    assert [step.reward for step in steps] == [1.0] * 7
    assert sys.modules["mine"].most == 3
    with pytest.raises(
        TrainingError, match=r"reward function mine.waits took longer than 0.5 s \(its limit is `seconds"
    ):
        first(game, a="never", b="")


def test_a_slow_call_costs_its_own_episode_only() -> None:
    game = task("mine.slow", seconds=0.2, on_error="drop", trial=False)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    began = time.monotonic()
    texts = [{"a": a, "b": ""} for a in ("quick", "slow", "quick")]
    steps = game.step_batch([state] * 3, texts)
    assert time.monotonic() - began < 4.0
    assert [getattr(step, "reward", None) for step in steps] == [1.0, None, 1.0]
    assert (steps[1].cause, str(steps[1])) == (
        "reward_function",
        "the reward function mine.slow took longer than 0.2 s (its limit is `seconds`) for task 'rows.jsonl:1'",
    )


def test_nothing_is_called_twice_after_a_slow_call() -> None:
    game = task("mine.counted", seconds=0.4, on_error="drop", trial=False)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    # The first call ends at 0.6 s; from 0.4 s another thread makes the other five, until about 0.4 + 5 * 0.15 = 1.15 s.
    steps = game.step_batch([state] * 6, [{"a": str(index), "b": ""} for index in range(6)])
    time.sleep(0.3)  # what the first thread would still begin
    assert [getattr(step, "reward", None) for step in steps] == [None, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert sys.modules["mine"].begun == [0, 1, 2, 3, 4, 5]


def test_an_answer_that_comes_as_the_time_ends_is_taken() -> None:
    worker = _Worker(lambda: 1, [((), {})])
    worker.work()
    assert not worker.leave()  # the answer is there
    assert worker.answers.get() == 1
    assert worker.leave()


def test_an_asynchronous_function_that_exits_is_named_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"mine.departs raised SystemExit: .*\(mine.py line \d+\)"):
        task("mine.departs", seconds=5)
    assert time.monotonic() - began < 3.0


def test_an_outage_is_a_failed_episode_also_in_the_trial() -> None:
    game = task("mine.outage")
    with pytest.raises(EpisodeFailure, match="no line") as failure:
        first(game, a="", b="")
    assert failure.value.cause == "line"


# Mistakes, all found at construction

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no module": (
        {"reward": "my_rewards.brevity"},
        r"there is no module 'my_rewards' \(looked in .* and the installed",
    ),
    "no function": ({"reward": "mine.numbr"}, r"mine has no function 'numbr' \(it has \['blocks', 'breaks'"),
    "no path": ({"reward": "number"}, r"reward is 'number'; give an import path such as my_rewards.brevity"),
    "not callable": ({"reward": "mine.value"}, "mine has no function 'value'"),
    "broken module": (
        {"reward": "broken.number"},
        r"importing broken failed: ModuleNotFoundError.*nothing_here.*line 1",
    ),
    "parameters": ({"reward": "mine.one_argument"}, "cannot be called with the fields and {agent_id: text}: too many"),
    "name of a metric": (
        {"reward": "mine.named_return"},
        "reward function mine.named_return returned has 'return', a name under which the run logs a number of its own",
    ),
    "raises": (
        {"reward": "mine.breaks"},
        r"mine.breaks raised KeyError: 'wrod' \(mine.py line 23\) for task",
    ),
    "leaves": ({"reward": "mine.leaves"}, "mine.leaves raised SystemExit"),
    "nan": ({"reward": "mine.nan"}, "mine.nan returned nan, which is no finite number for task"),
    "text": ({"reward": "mine.text"}, "mine.text returned 'much', which is no finite number"),
    "range": (
        {"reward": "mine.large"},
        "returned 7 for blank responses, outside the range from min_reward 0 to max_rew",
    ),
    "slow": ({"reward": "mine.slow", "seconds": 0.1}, "mine.slow took longer than 0.1 s"),
    "blocks": ({"reward": "mine.blocks", "seconds": 0.01}, "mine.blocks took longer than 0.01 s without an await"),
    "trl team": ({"reward": "mine.trl"}, r"the form of TRL, which is for one agent, but there are \['a', 'b'\]"),
    "trl tokens": (
        {"reward": "mine.trl_tokens", "templates": None},
        r"cannot be called with the columns \['completions', 'prompts', 'size', 'word'\]: .*change its par",
    ),
    "trl length": (
        {"reward": "mine.trl_short", "templates": None},
        r"returned \[\] for 1 completions; return a list of one number for each",
    ),
    "feedback missing": ({"horizon": 2}, "horizon is 2 and feedback None; name a feedback function"),
    "feedback unused": ({"feedback": "mine.hint"}, "horizon is 1 and feedback 'mine.hint'"),
    "feedback of one": (
        {"feedback": "mine.deaf", "horizon": 2},
        r"returned {'a': 'only one'}, no text for all or each",
    ),
    "field": (
        {"templates": {"a": "{wrod}"}},
        r"template of 'a' names {wrod}, but rows.jsonl line 1 has no such field \(it",
    ),
    "attribute": ({"templates": {"a": "{word.__class__}"}}, r"has {word.__class__}; only plain field names"),
    "index": ({"templates": {"a": "{word[0]}"}}, r"has {word\[0\]}; only plain"),
    "conversion": ({"templates": {"a": "{word!r:>9}"}}, "has {word!r:>9}; only plain"),
    "position": ({"templates": {"a": "{}"}}, "only plain field names"),
    "brace": ({"templates": {"a": "{word"}}, "the template of 'a': expected '}'.*write {{ and }} for braces"),
    "blank": ({"templates": {"a": " "}}, "the template of 'a' is ' '; give a text such as 'Answer: {question}'"),
    "no agents": ({"templates": {}}, "templates is {}; give a text by agent id"),
    "dataset": ({"dataset": "row.jsonl"}, "there is no such file or folder"),
    "too many": ({"num_eval": 9}, r"num_train=1 and num_eval=9 ask for more rows than there are \(4 in 'rows.jsonl'\)"),
    "id": ({"id_field": "name"}, "rows.jsonl line 1: the field 'name' must be an id, got None; give every row one, or"),
    "on_error": ({"on_error": "ignore"}, "on_error is 'ignore'; choose one of stop, drop"),
    "seconds": ({"seconds": 0}, "seconds is 0; it must be"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_at_construction(mistake: str) -> None:
    settings, message = MISTAKES[mistake]
    with pytest.raises(ConfigurationError, match=message) as error:
        task(**settings)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.csv", b"word,size\nw0,0\nw1,1,2\n", "bad.csv line 3 has 3 values for 2 columns; quote values that hold"),
        (
            "bad.jsonl.gz",
            gzip.compress(b'{"word": "x"}')[:10] + b"\xff" * 20,
            "bad.jsonl.gz cannot be read .*; give a readable file in UTF-8",
        ),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        rows.load_rows(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ('{"word": 1}\n[2]\n', "line 2: expected one object with named fields, got list"),
        ('{"word": 1', "line 1 is not JSON"),
        (
            '{"word": "x", "size": 1}\n{"word": null, "size": 2}\n',
            "names {word}, which is empty at .* line 2; fill it in",
        ),
        ('{"word": "x", "size": 1}\n{"word": "x", "size": 1}\n', "line 2 repeats all fields of .* line 1; remove one"),
        ('{"word": "\\ud800", "size": 1}\n{"word": "x", "size": 1}\n', "line 1, shown to 'a'.* lone surrogate"),
    ],
)
def test_bad_rows_are_named(folder: Path, content: str, message: str) -> None:
    (folder / "bad.jsonl").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        task(dataset="bad.jsonl")


def test_repeated_ids_and_shared_rows_are_refused(folder: Path) -> None:
    named = [{"id": str(index // 2), **row} for index, row in enumerate(ROWS)]
    with pytest.raises(ConfigurationError, match=r"line 2 repeats the id '0' of .*line 1"):
        task(dataset=write(folder / "named.jsonl", named), id_field="id")
    with pytest.raises(
        ConfigurationError, match=r"held-out row 'other.jsonl:1' is the same as 'rows.jsonl:3'; drop one"
    ):
        task(dataset="rows.jsonl", eval_dataset=write(Path("other.jsonl"), ROWS[2:]))


# Where rows come from


def test_files_of_all_kinds_and_folders_give_the_same_rows(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "b.json").write_text(json.dumps(ROWS[2:]))
    (folder / "data" / "a.csv").write_text("word,size,prompt\nw0,0,say w0\nw1,1,say w1\n")
    found = rows.load_rows("data")
    assert [row.fields["word"] for row in found] == ["w0", "w1", "w2", "w3"]
    assert [row.fields["size"] for row in found] == ["0", "1", 2, 3]  # a .csv file holds texts
    assert [row.row_id for row in found] == ["data/a.csv:2", "data/a.csv:3", "data/b.json:1", "data/b.json:2"]


def test_parquet_files_are_read(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), "rows.parquet")
    assert [row.fields for row in rows.load_rows("rows.parquet")] == ROWS
    (folder / "bad.parquet").write_text("PAR")
    with pytest.raises(ConfigurationError, match=r"bad.parquet is no readable .parquet file"):
        rows.load_rows("bad.parquet")


def test_a_hub_data_set_is_asked_for_its_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str, split: str) -> list[dict[str, Any]]:
        asked.append((*names, split))
        return [*ROWS, ROWS[0]]

    monkeypatch.setitem(sys.modules, "datasets", type("Datasets", (), {"load_dataset": staticmethod(load_dataset)}))
    game = task(dataset="owner/name", subset="main", split="test")
    assert asked == [("owner/name", "main", "test")]
    assert [each.task_id for each in game.tasks("train")] == ["owner/name:0", "owner/name:1", "owner/name:2"]


def test_a_seed_shuffles_before_the_split() -> None:
    orders = [
        [each.data["size"] for split in ("train", "eval") for each in task(seed=seed).tasks(split)]
        for seed in (None, 1, 1)
    ]
    assert orders[0] == [0, 1, 2, 3] != orders[1] == orders[2]
    assert sorted(orders[1]) == orders[0]


def test_values_of_all_kinds_are_shown() -> None:
    template = Template("it", "{a} {b} {c c}")
    assert template.fill({"a": 1.5, "b": ["é", {"x": None}], "c c": True}) == '1.5 ["é", {"x": null}] True'


# The example

FENCE = {"posts": [[0, 0], [1, 0], [2, 0], [3, 0]]}


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("", "", (0, 0, 0)),
        ("/setblock 0 0 0 stone", "/setblock 1 0 0 stone", (0.5, 0, 0)),
        ("/setblock 0 0 0 stone", "/setblock 0 0 0 stone", (0.25, -0.25, 0)),
        ("/setblock 0 0 0 stone\n/setblock 0 0 0 stone", "nothing", (0.25, 0, 0)),
        ("/setblock 0 4 0 stone\n/setblock 0 0 0 air", "/setblock 9 9 0 stone", (0.25, 0, -0.5)),
        ("".join(f"/setblock {x} 3 0 stone\n" for x in range(9)), "", (0, 0, -1)),
        ("".join(f"/setblock {x} 0 0 stone\n" for x in range(4)), "", (1, 0, 0)),
    ],
)
def test_fences_by_hand(left: str, right: str, expected: tuple[float, float, float]) -> None:
    found = fence(FENCE, {"left": left, "right": right})
    assert found == dict(zip(("covered", "doubled", "astray"), expected, strict=True))
