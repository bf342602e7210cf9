"""Returns of reward functions worked by hand: those of docs/reward_function.md, for a team and for one agent."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collm.environments.reward_function import RewardFunctionTask

FUNCTIONS = """
def brevity(fields, texts):
    said = " ".join(texts.values()).lower()
    words = sum(len(text.split()) for text in texts.values())
    return {"right": float(fields["answer"].lower() in said), "long": -min(1.0, words / 50)}

def hint(fields, texts, history):
    if fields["answer"].lower() in " ".join(texts.values()).lower():
        return None
    return f"Not yet, after {len(history) + 1} turns. It begins with {fields['answer'][: len(history) + 1]}."

def short(completions, answer, **kwargs):
    return [float(len(text) < 40 and right in text) for text, right in zip(completions, answer)]
"""
ROWS = [{"question": f"What do bees make? {index}", "answer": "Honey"} for index in range(2)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "by_hand.py").write_text(FUNCTIONS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    yield
    sys.modules.pop("by_hand", None)


def task(reward: str, **settings: object) -> RewardFunctionTask:
    templates = {"scholar": "{question}", "sceptic": "{question}"}
    given = {"dataset": "rows.jsonl", "num_eval": 1, "templates": templates, "min_reward": -1.0, **settings}
    return RewardFunctionTask(reward=f"by_hand.{reward}", **given)  # type: ignore[arg-type]


# The responses, whether "honey" is said (1), and the number of words, of which each costs 1 / 50, at most 50.
TEAM: dict[str, tuple[str, str, int, int]] = {
    "nobody answers": ("", "", 0, 0),
    "blanks are no words": (" \n\t", "  ", 0, 0),
    "one says it": ("Honey", "", 1, 1),
    "both say it, which pays once": ("Honey", "Honey", 1, 2),
    "in small letters": ("", "honey", 1, 1),
    "in a sentence": ("Bees make honey.", "", 1, 3),
    "the first says it, the second talks": ("Honey", "I would say wax", 1, 5),
    "both are wrong": ("Wax", "Nectar", 0, 2),
    "half of it each": ("Hon", "ey", 0, 2),
    "within another word": ("honeymoon", "", 1, 1),
    "as a command": ("```\nhoney\n```", "", 1, 3),
    "fifty words, none right": ("wax " * 25, "wax " * 25, 0, 50),
    "eighty words, one of them right": ("wax " * 79, "honey", 1, 80),
    "five hundred words": ("wax " * 500, "", 0, 500),
    "half a character": ("\ud800 honey", "\x00", 1, 3),
    "after the longest text that is read": ("x" * 100_000 + " honey", "", 0, 1),
}


@pytest.mark.parametrize("case", TEAM)
def test_rewards_of_a_team_by_hand(case: str) -> None:
    scholar, sceptic, right, words = TEAM[case]
    game = task("brevity")
    state, shown = game.reset(game.tasks("train")[0], random.Random(0))
    assert shown == dict.fromkeys(("scholar", "sceptic"), "What do bees make? 0")
    step = game.step(state, {"scholar": scholar, "sceptic": sceptic})
    assert step.terms == pytest.approx({"right": right, "long": -min(50, words) / 50})
    assert step.reward == pytest.approx(right - min(50, words) / 50)
    assert step.terminated
    assert game.min_reward <= step.reward <= game.max_reward


@pytest.mark.parametrize(
    ("says", "rewards", "last"),
    [
        (["honey"], [0.98], None),
        (["wax", "honey"], [-0.02, 0.98], "Not yet, after 1 turns. It begins with H."),
        (["wax", "", "is it honey"], [-0.02, 0.0, 0.94], "Not yet, after 2 turns. It begins with Ho."),
        (["wax", "wax", "wax"], [-0.02] * 3, "Not yet, after 2 turns. It begins with Ho."),
    ],
)
def test_turns_with_hints_by_hand(says: list[str], rewards: list[float], last: str | None) -> None:
    game = task("brevity", feedback="by_hand.hint", horizon=3)
    state, _ = game.reset(game.tasks("train")[0], random.Random(0))
    found, told = [], None
    for text in says:
        step = game.step(state, {"scholar": text, "sceptic": ""})
        found.append(step.reward)
        told = step.observations.get("sceptic", told)
        state = step.state
    assert step.terminated
    assert found == pytest.approx(rewards)
    assert told == last


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("Honey", 1.0),
        ("honey", 0.0),  # TRL's functions see texts as they are
        ("It is Honey", 1.0),
        ("", 0.0),
        ("Honey" + "." * 34, 1.0),  # 39 characters
        ("Honey" + "." * 35, 0.0),  # 40
    ],
)
def test_rewards_of_a_function_of_trl_by_hand(text: str, reward: float) -> None:
    game = task("short", templates={"agent": "{question}"})
    states = [game.reset(game.tasks("train")[0], random.Random(0))[0] for _ in range(2)]
    steps = game.step_batch(states, [{"agent": text}, {"agent": "Wax"}])
    assert [step.reward for step in steps] == [reward, 0.0]  # type: ignore[union-attr]
