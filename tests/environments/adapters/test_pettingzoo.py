"""Games with PettingZoo's parallel interface: actions, rewards, agents that leave, pictures, and every mistake."""

from __future__ import annotations

import base64
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from collm.environments.adapters.pettingzoo import OUT, PettingZooText
from collm.errors import ConfigurationError, TrainingError
from collm.trajectory import Action, Trajectory, Turn
from toy import REPOSITORY

# Two agents and a number, which the first observation shows: naming it earns 1; an agent that names 0 leaves.
GAME = """
import random
import numpy as np

class Discrete:
    def __init__(self, n): self.n = n
class Text: pass
class Box: pass

class Game:
    possible_agents = ["red", "blue"]
    render_mode = "rgb_array"
    space = Discrete(5)
    def action_space(self, agent): return self.space
    def reset(self, seed=None, options=None):
        self.secret = random.Random(seed).randrange(1, 5)
        self.agents, self.turn = list(self.possible_agents), 0
        return {agent: f"It is {self.secret}." for agent in self.agents}, {agent: {} for agent in self.agents}
    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.turn += 1
        here = list(self.agents)
        rewards = {agent: float(actions[agent] == self.secret) for agent in here}
        left = {agent: actions[agent] == 0 for agent in here}
        self.agents = [agent for agent in here if not left[agent]]
        late = {agent: self.turn == 3 for agent in here}
        if self.turn == 3: self.agents = []
        return {agent: f"turn {self.turn}" for agent in self.agents}, rewards, left, late, {agent: {} for agent in here}
    def render(self):
        return np.full((4, 4, 3), self.turn, dtype=np.uint8)

make = Game

def numbers():
    game = Game()
    game.reset = lambda seed=None: ({agent: 7 for agent in game.possible_agents}, {})
    return game

def texts():
    game = Game()
    game.space = Text()
    return game

def boxes():
    game = Game()
    game.space = Box()
    return game

def breaks():
    game = Game()
    game.step = lambda actions: 1 / 0
    return game

def nothing():
    return None

def describe(agent, observation):
    return f"{agent} sees {observation}"

def bad(agent, observation):
    return observation
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "zoo_game.py").write_text(GAME)
    yield
    sys.modules.pop("zoo_game", None)


def game(make: str = "zoo_game.make", **settings: Any) -> PettingZooText:
    return PettingZooText(**{"make": make, "min_reward": 0.0, "max_reward": 1.0, "horizon": 5, **settings})


def secret(seed: int) -> int:
    return random.Random(seed).randrange(1, 5)


def test_an_episode_by_hand() -> None:
    played = game(num_tasks=3, num_eval=2, seed=10)
    assert played.agent_ids == ("red", "blue")
    assert [task.task_id for task in played.tasks("eval")] == ["seed 13", "seed 14"]
    task = played.tasks("train")[1]
    right = secret(11)
    state, shown = played.reset(task, random.Random(0))
    assert shown == dict.fromkeys(("red", "blue"), f"It is {right}.")
    one = played.step(state, {"red": f"I say {right}, not 4", "blue": "no number, or 99"})
    # blue named nothing valid, so 0, and left
    assert (one.reward, one.terminated, one.observations) == (0.5, False, {"red": "turn 1", "blue": OUT})
    assert one.info == {"rewards": {"red": 1.0, "blue": 0.0}, "invalid": ["blue"]}
    assert played.state_features(one.state) == {"total": 0.5, "in_the_game": 0.5}
    assert played.state_text(one.state) == f"red: turn 1\nblue: {OUT}"
    two = played.step(one.state, {"red": "-1 3", "blue": str(right)})
    assert (two.reward, two.info["invalid"]) == (0.5 * (right == 3), [])
    drawn = played.render_turn(two.state)
    assert drawn is not None
    png = base64.b64decode(drawn.partition("base64,")[2].partition('"')[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.full((4, 4, 3), 2, dtype=np.uint8))
    three = played.step(two.state, {"red": str(right), "blue": ""})
    assert (three.reward, three.terminated, three.observations) == (0.5, True, {})
    trajectory = Trajectory(task, 0, 5, 1.0)
    for step, red in ((one, str(right)), (two, "3"), (three, str(right))):
        acted = {"red": Action(red), "blue": Action("none")}
        trajectory.turns.append(Turn({}, acted, step.reward, step.terms, step.info))
    assert played.metrics(trajectory) == {"reward/red": 2.0 + (right == 3), "reward/blue": 0.0, "invalid": 1 / 6}
    picture = played.render(trajectory)
    assert picture is not None
    assert np.array_equal(picture, np.full((4, 4, 3), 3, dtype=np.uint8))  # drawn by the game itself after three turns


def test_the_example_is_played_by_its_configuration() -> None:
    """Each sees the other's digit, passes it on, and names its own."""
    given = yaml.safe_load((REPOSITORY / "configs" / "environments" / "pettingzoo.yaml").read_text())
    played = PettingZooText(**given["data"]["environment"]["init_args"])
    for task in played.tasks("eval")[:5]:
        rng = random.Random(task.data["seed"])
        left, right = rng.randrange(10), rng.randrange(10)
        state, shown = played.reset(task, random.Random(0))
        assert shown == {
            "left": f"The other one's digit is {right}. Write a digit for it to see.",
            "right": f"The other one's digit is {left}. Write a digit for it to see.",
        }
        told = played.step(state, {"left": f"{right}", "right": f"{left}"})
        assert (told.reward, told.terminated) == (0.0, False)
        assert told.observations == {
            "left": f"The other one wrote {left}. Write your own digit.",
            "right": f"The other one wrote {right}. Write your own digit.",
        }
        last = played.step(told.state, {"left": f"It is {left}", "right": f"{(right + 1) % 10}"})
        assert (last.reward, last.terminated, last.observations) == (0.5, True, {})


def test_the_horizon_ends_an_episode() -> None:
    played = game(horizon=1)
    state, _ = played.reset(played.tasks("train")[0], random.Random(0))
    assert played.step(state, {"red": "1", "blue": "1"}).observations == {}


def test_texts_are_actions_and_observations_are_described() -> None:
    played = game("zoo_game.texts")
    assert played.action("red", "anything") == ("anything", True)
    described = game("zoo_game.numbers", describe="zoo_game.describe")
    _, shown = described.reset(described.tasks("train")[0], random.Random(0))
    assert shown == {"red": "red sees 7", "blue": "blue sees 7"}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        ("zoo_game.numbers", {}, "shows 'red' 7, which is no text; name a function `describe`"),
        ("zoo_game.numbers", {"describe": "zoo_game.bad"}, "shows 'red' 7, which is no text; return a text"),
        ("zoo_game.boxes", {}, "'red' has actions of Box; only Discrete .from 0. and Text are supported"),
        ("zoo_game.nothing", {}, "lacks PettingZoo's parallel interface: AttributeError"),
        ("zoo_game.missing", {}, "zoo_game has no function 'missing'"),
        ("zoo_game.make", {"default_action": 5}, "default_action is 5, but red has the actions 0 to 4"),
        ("zoo_game.make", {"horizon": 0}, "horizon is 0"),
    ],
)
def test_mistakes_are_named(make: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        game(make, **settings)


def test_a_step_that_raises_is_named() -> None:
    played = game("zoo_game.breaks")
    state, _ = played.reset(played.tasks("train")[0], random.Random(0))
    with pytest.raises(TrainingError, match=r"zoo_game.breaks: step raised ZeroDivisionError.*at the seed 0; mend it"):
        played.step(state, {"red": "1", "blue": "1"})


def test_a_game_of_the_package_itself_is_played(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip("pettingzoo")
    (tmp_path / "zoo_real.py").write_text(
        "import gymnasium\n"
        "from pettingzoo import ParallelEnv\n"
        "class Echo(ParallelEnv):\n"
        "    metadata = {'name': 'echo'}\n"
        "    possible_agents = ['a', 'b', 'c']\n"
        "    def observation_space(self, agent): return gymnasium.spaces.Text(100)\n"
        "    def action_space(self, agent): return gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, seed=None, options=None):\n"
        "        self.agents = list(self.possible_agents)\n"
        "        return dict.fromkeys(self.agents, 'go'), {a: {} for a in self.agents}\n"
        "    def step(self, actions):\n"
        "        here, self.agents = self.agents, []\n"
        "        rewards = {a: float(actions[a]) for a in here}\n"
        "        return {}, rewards, dict.fromkeys(here, True), dict.fromkeys(here, False), {a: {} for a in here}\n"
    )
    played = game("zoo_real.Echo")
    state, shown = played.reset(played.tasks("train")[0], random.Random(0))
    assert shown == {"a": "go", "b": "go", "c": "go"}
    step = played.step(state, {"a": "1", "b": "1", "c": "0"})
    assert (step.reward, step.terminated) == (pytest.approx(2 / 3), True)
