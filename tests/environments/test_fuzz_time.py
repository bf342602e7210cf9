"""Many malformed completions in every environment beyond the paper's: no exception, rewards in range, none is slow.

The default run reads a few thousand; COLLM_FUZZED=100000 says how many (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from collm.environments.adapters.pettingzoo import PettingZooText
from collm.environments.adapters.reasoning import ReasoningGym
from collm.environments.base import Environment
from collm.environments.coding.class_eval import ClassEval
from collm.environments.games.bridge_build import BridgeBuild
from collm.environments.games.resource_gathering import ResourceGathering
from collm.environments.reward_function import RewardFunctionTask
from collm.environments.tools.function_calling import FunctionCalling
from collm.errors import ConfigurationError
from collm.sandbox.case import Case, UnitResult, Verdict
from collm.trajectory import Action, Trajectory, Turn

# Python's opinion of fuzzed programs; outside of tests the environment silences it.
pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
COMPLETIONS = int(os.environ.get("COLLM_FUZZED", "3000"))
LIMIT = 0.05  # seconds of CPU time for a turn, in which every agent wrote one
FENCE = {"reward": "collm.environments.example_rewards.fence", "min_reward": -1.0}
SIGNALS = "collm.environments.adapters.example_game.Signals"
TALK = ("none", "facts", "text")
GAMES: dict[str, tuple[type[Environment], dict[str, Any]]] = {
    **{f"gathering {talk}": (ResourceGathering, {"num_maps": 20, "communication": talk}) for talk in TALK},
    "gathering late": (ResourceGathering, {"num_maps": 20, "reward": "sparse", "level": 3, "horizon": 8}),
    **{f"bridge {talk}": (BridgeBuild, {"num_maps": 20, "communication": talk}) for talk in TALK},
    "bridge late": (BridgeBuild, {"num_maps": 20, "reward": "sparse", "prompt": "compact"}),
    "calls": (FunctionCalling, {"num_agents": 3}),
    "calls alone": (FunctionCalling, {"num_agents": 1}),
    "class": (ClassEval, {"horizon": 2}),
    "class of five": (ClassEval, {"horizon": 2, "reward_density": "sparse", "deal": "blocks", "num_agents": 5}),
    "reward function": (RewardFunctionTask, {**FENCE, "dataset": "samples", "templates": {"a": "{plan}", "b": "x"}}),
    "reasoning": (ReasoningGym, {"num_train": 8, "num_eval": 2}),
    "zoo": (PettingZooText, {"make": SIGNALS, "min_reward": 0.0, "max_reward": 1.0, "horizon": 2}),
}
PIECES = (
    *(
        "\n",
        "\t",
        "\r",
        "\0",
        "    ",
        "\f",
        "\u2028",
        "\u00a0",
        "\ufeff",
        "\ud800",
        "é",
        "日本",
        "🙂",
        "\u0661",
        "\u00b2",
    ),
    *(
        "```",
        "```python\n",
        "- ",
        "1. ",
        "#",
        "//",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "'",
        '"',
        "'''",
        "=",
        ",",
        ":",
        ";",
        "\\",
    ),
    *(
        "-1",
        "0",
        "7",
        "16",
        "1e9",
        "0x7",
        "nan",
        "inf",
        "None",
        "true",
        "9" * 30,
        "**x",
        "*a",
        "lambda: ",
        "f(",
        "@a\n",
    ),
    *(
        "go ",
        "take ",
        "tell ",
        "say ",
        "probe ",
        "fill ",
        "/fill ",
        "wood",
        "stone",
        "iron",
        "plank",
        "def ",
        "class A:\n",
    ),
    *(
        "return ",
        "self.",
        "import os\n",
        "yield ",
        "async ",
        "if x:\n",
        "while 1: ",
        "switch_light(",
        "minutes=",
        "<answer>",
    ),
)


class Judged:
    """In place of the sandbox, which has tests of its own: asserts of programs pass by chance."""

    protections = ()

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def submit(self, case: Case) -> Any:
        lines = [number for number, line in enumerate(case.test.split("\n"), 1) if line.strip().startswith("assert")]
        units = tuple(UnitResult(line, "", self.rng.random() < 0.5, "no") for line in lines)
        whole = Verdict(True, True, units, "", 0, len(units), True)
        broken = Verdict(False, False, (), "SyntaxError: no", 0, len(units), False)
        return SimpleNamespace(result=lambda: whole if self.rng.random() < 0.8 else broken)


def completion(rng: random.Random, right: str, shown: str) -> str:
    """A right answer or something else, cut up and put together with whatever is awkward."""
    text = rng.choice((right, right, right + "\n" + right, shown, ""))
    for _ in range(rng.randrange(7)):
        place, piece = rng.randrange(len(text) + 1), rng.choice(PIECES)
        text = text[:place] + piece + text[place + rng.choice((0, 0, 1, 5, 40)) :]
    if rng.random() < 0.05:
        place = rng.randrange(len(text) + 1)
        again = rng.choice((rng.choice(PIECES), right))
        text = text[:place] + again * min(rng.choice((5, 60, 1000)), 20_000 // (len(again) + 1)) + text[place:]
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text


def right_answers(game: Environment, state: Any, rng: random.Random) -> Mapping[str, str]:
    try:
        return game.demonstrate(state, rng)
    except ConfigurationError:  # it has no scripted demonstrations
        return dict.fromkeys(game.agent_ids, "1 2\noak_planks 3")


def play(game: Environment, number: int) -> tuple[int, float]:
    """An episode, the same for the same number: its completions, and the CPU time of its slowest turn."""
    rng = random.Random(number)
    if isinstance(game, ClassEval):
        game.sandbox.rng.seed(number)
    tasks = game.tasks("train")
    task = tasks[number % len(tasks)]
    state, observations = game.reset(task, random.Random(number))
    trajectory = Trajectory(task, 0, game.horizon, game.max_reward)
    slowest = 0.0
    for _ in range(game.horizon):
        right = right_answers(game, state, rng)
        texts = {name: completion(rng, right[name], observations[name]) for name in game.agent_ids}
        began = time.process_time()
        step = game.step(state, texts)
        game.state_features(step.state)
        described = game.state_text(step.state)
        slowest = max(slowest, time.process_time() - began)
        assert game.min_reward - 1e-9 <= step.reward <= game.max_reward + 1e-9, texts
        assert set(step.observations) in (set(), set(game.agent_ids))
        actions = {name: Action(text) for name, text in texts.items()}
        trajectory.turns.append(Turn(observations, actions, step.reward, step.terms, step.info))
        state, observations = step.state, step.observations
        for text in (described, *observations.values()):
            text.encode("utf-8")  # for tokenizers
        if step.terminated or not observations:
            break
    json.dumps(trajectory.record())
    assert all(isinstance(value, float) for value in game.metrics(trajectory).values())
    return len(trajectory.turns) * len(game.agent_ids), slowest


@pytest.mark.parametrize("name", GAMES)
def test_malformed_completions_are_read_in_time(name: str) -> None:
    kind, options = GAMES[name]
    if kind is ReasoningGym and not find_spec("reasoning_gym"):
        pytest.skip("reasoning-gym is missing")
    game = kind(**options, **({"sandbox": Judged()} if kind is ClassEval else {}))
    read, number = 0, 0
    while read < COMPLETIONS / len(GAMES):
        count, slowest = play(game, number)
        if slowest > LIMIT:  # a collection of all objects, which takes 0.1 s and more beside torch, so play again
            slowest = min(play(game, number)[1] for _ in range(2))
        assert slowest < LIMIT, number
        read, number = read + count, number + 1
