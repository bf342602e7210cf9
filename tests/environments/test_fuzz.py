"""Whatever agents write: no environment raises, and rewards stay within the stated range."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collm.environments.base import Environment
from collm.environments.building.house_build import HouseBuild
from collm.environments.building.str_build import StrBuild
from collm.environments.coding.class_eval import ClassEval
from collm.environments.coding.task import Coding
from collm.environments.games.bridge_build import BridgeBuild
from collm.environments.games.resource_gathering import ResourceGathering
from collm.environments.reward_function import RewardFunctionTask
from collm.environments.tools.function_calling import FunctionCalling
from collm.environments.writing.arxiv import ArXiv
from collm.environments.writing.tldr import TLDR
from collm.sandbox.pool import Sandbox
from collm.trajectory import Action, Trajectory, Turn

CLASSES = {"tldr": TLDR, "arxiv": ArXiv, "str_build": StrBuild, "house_build": HouseBuild, "coding": Coding}
GAMES = {"gathering": ResourceGathering, "bridge": BridgeBuild}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}_{reward}": (name, {"reward": reward}) for name in CLASSES for reward in ("paper", "released")
} | {
    "tldr_alone": ("tldr", {"single_agent": True}),
    "arxiv_alone": ("arxiv", {"single_agent": True}),
    "str_build_persistent": ("str_build", {"persistent": True, "feedback": "perfect"}),
    "str_build_sparse": ("str_build", {"reward_density": "sparse", "prompt": "compact"}),
    "house_build_persistent": ("house_build", {"persistent": True, "feedback": "perfect"}),
    "house_build_alone": ("house_build", {"blocks": {"builder": []}, "feedback": "position"}),
    "coding_alone": ("coding", {"single_agent": True, "feedback": "full"}),
    "coding_disjoint": ("coding", {"disjoint_feedback": True, "feedback": "full", "reward_density": "sparse"}),
    **{f"{name}_{talk}": (name, {"communication": talk}) for name in GAMES for talk in ("none", "facts", "text")},
    "gathering_late": ("gathering", {"reward": "sparse", "level": 3, "horizon": 8, "prompt": "compact"}),
    "bridge_late": ("bridge", {"reward": "sparse", "prompt": "compact"}),
}
CLASSES |= {"reward_function": RewardFunctionTask, "function_calling": FunctionCalling, "class_eval": ClassEval}
FENCE = {"dataset": "samples", "reward": "collm.environments.example_rewards.fence", "min_reward": -1.0}
VARIANTS |= {
    "reward_function": ("reward_function", {**FENCE, "templates": {"left": "{plan}", "right": "{posts}"}}),
    "function_calling": ("function_calling", {"num_agents": 3}),
    "function_calling_alone": ("function_calling", {"num_agents": 1}),
    "class_eval": ("class_eval", {"horizon": 2}),
    "class_eval_sparse": ("class_eval", {"horizon": 2, "reward_density": "sparse", "deal": "blocks", "num_agents": 5}),
}

WORDS = st.sampled_from(
    [
        *("the", "a", "fox", "however", "because", "first", "in addition", "Paragraph 1:", "Paragraph 2:", "summary"),
        *("[PARAGRAPH_SPLIT]", "model", ".", ",", "\n", ""),
    ]
)
COMMANDS = st.builds(
    lambda verb, numbers, block: " ".join([verb, *map(str, numbers), block]),
    st.sampled_from(["/setblock", "/fill", "fill", "/kill", "- /setblock", "1. /fill"]),
    st.lists(st.integers(-2, 12), min_size=2, max_size=7),
    st.sampled_from(["oak_planks", "stone", "white_concrete", "obsidian", "air", "minecraft:stone", "lava", ""]),
)
MOVES = st.builds(
    lambda verb, kind, numbers: " ".join([verb, *kind, *map(str, numbers)]),
    st.sampled_from(["go", "take", "tell", "say", "probe", "fill", "- go", "1. take", "TELL", "/fill"]),
    st.lists(st.sampled_from(["wood", "stone", "iron", "rubble", "\ud800", "\u0661"]), max_size=1),
    st.lists(st.integers(-2, 16) | st.integers(), max_size=5),
)
CODE = st.sampled_from(
    [
        *(
            "def aux(x):",
            "def sum_of_evens(numbers):",
            "    return aux(numbers)",
            "    return 6",
            "    y = aux(numbers)",
        ),
        *("    return y", "        return [", "import os", "X = {", "}", "@aux", "class A:", "    def f(self):"),
        *("    '''doc", "    '''", "```python", "```", "    aux (x)", "    exit()", "    raise BaseException", "Sure!"),
        *("async def sum_of_evens(x):", "    yield 1", "lambda:", "    pass", "\tpass", "    global aux", "\\", "\x00"),
        *("    return os.environ", "    return float('nan')", "    return sum_of_evens", "    nonlocal q", "# aux(x)"),
    ]
)
# Whole functions, so that programs get as far as their tests.
BODIES = st.sampled_from(
    [
        *("return sum(x for x in numbers if x % 2 == 0)", "return sum(aux(numbers))", "aux(numbers)\n    return 8"),
        *("return aux(numbers)", "raise SystemExit", "return numbers", "yield 6", "return aux", "numbers.clear()"),
        *("return type('E', (), {'__eq__': lambda a, b: True})()", "import os\n    os._exit(0)", "return '\\ud800'"),
        *(
            "raise ValueError('\\ud800' * 9)",
            "return [numbers] * 3",
            "assert 0, 'no'\n    return 1",
            "return 10 ** 5000",
        ),
    ]
)
PROGRAMS = st.builds(
    lambda name, body, tail: f"def {name}(numbers):\n    {body}\n{tail}",
    st.sampled_from(["aux", "sum_of_evens"]),
    BODIES,
    st.sampled_from(["", "X = 1\n", "print(1)\n", "def cut(", "import nothing_here\n"]),
)
CALLS = st.sampled_from(
    [
        *("switch_light(room='kitchen', on=True)", "switch_light(room=", "get_weather(city='Rome', city=1)", "[", "]"),
        *("set_timer(minutes=-5)", "f(**x)", "- math.square_root(number=9)", "f(x={'a': [1, {}]})", "()", "=", "'"),
        *("def deposit(self, amount):", "def withdraw(self, amount): return True", "class Account:", "    return 8"),
        *("    self.balance += amount", "@property", "def history(self): raise SystemExit", "import os; os._exit(1)"),
    ]
)
TEXTS = (
    PROGRAMS
    | st.lists(CALLS, max_size=8).map("\n".join)
    | st.lists(WORDS, max_size=300).map(" ".join)
    | st.lists(COMMANDS, max_size=12).map("\n".join)
    | st.lists(MOVES, max_size=12).map("\n".join)
    | st.lists(CODE, max_size=10).map("\n".join)
    | st.text(max_size=200)
)


@cache
def sandbox() -> Sandbox:
    return Sandbox(workers=2, call_seconds=1.0)


@cache
def environment(variant: str) -> Environment:
    name, options = VARIANTS[variant]
    if name in ("coding", "class_eval"):
        options = {**options, "sandbox": sandbox()}
    if name == "house_build":
        options = {**options, "num_houses": 3, "num_eval": 1, "size": (4, 4, 4)}
    if name in GAMES:
        options = {**options, "num_maps": 20}
    return {**CLASSES, **GAMES}[name](**options)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_text_is_a_legal_action(variant: str, data: st.DataObject) -> None:
    played = environment(variant)
    task = played.tasks("train")[0]
    state, observations = played.reset(task, random.Random(0))
    trajectory = Trajectory(task, 0, played.horizon, played.max_reward)
    for _ in range(min(2, played.horizon)):
        assert set(observations) == set(played.agent_ids)
        actions = {agent_id: data.draw(TEXTS) for agent_id in played.agent_ids}
        step = played.step(state, actions)
        assert played.min_reward - 1e-9 <= step.reward <= played.max_reward + 1e-9
        acted = {name: Action(text) for name, text in actions.items()}
        trajectory.turns.append(Turn(observations, acted, step.reward, step.terms, step.info))
        state, observations = step.state, step.observations
        for text in observations.values():
            text.encode("utf-8")
        if step.terminated or not observations:
            break
    json.dumps(trajectory.record())
    assert all(isinstance(value, float) for value in played.metrics(trajectory).values())
