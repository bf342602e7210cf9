"""What environments say about their true state, and that critics alone learn of it."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from actors import actors_of
from collm.environments.base import Environment
from collm.environments.building.house_build import HouseBuild
from collm.environments.building.str_build import StrBuild
from collm.environments.coding.helper_use import HelperUse
from collm.environments.coding.reward import CodingScore
from collm.environments.coding.task import Coding, CodingState
from collm.environments.games.matrix_game import MatrixGame
from collm.environments.games.relay import Relay, State
from collm.environments.workload import Workload
from collm.errors import ConfigurationError
from collm.samplers.base import Episode, act_all
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.trajectory import Action, Task
from tabular import AGENTS, HISTORIES, TabularPolicy, TwoTurns
from toy import REPOSITORY

OWN = {"builder_1": ["oak_planks", "stone"], "builder_2": ["white_concrete", "obsidian"]}


def after(game: Environment, *joint_actions: Mapping[str, str], task: Task | None = None) -> Any:
    state, _ = game.reset(task or game.tasks("train")[0], random.Random(0))
    for joint_action in joint_actions:
        state = game.step(state, joint_action).state
    return state


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("density", ["dense", "sparse"])
def test_str_build_by_hand(persistent: bool, density: str) -> None:
    """An L of 9 cells: three of them and one beside it; planks next to planks twice, and next to obsidian once."""
    game = StrBuild(words=["L"], eval_words=["I"], persistent=persistent, reward_density=density, horizon=6)
    first = "/setblock 0 0 0 oak_planks\n/setblock 1 0 0 oak_planks\n/setblock 1 1 0 oak_planks"
    state = after(game, {"builder_1": first, "builder_2": "/setblock 2 0 0 obsidian"})
    features = game.state_features(state)
    score = 2 * 3 / 9 - 1.5 / 9 - 2 / 3
    assert features == {
        "target_cells": 9,
        "background_cells": 16,
        "covered": 3,
        "covered_share": 3 / 9,
        "missing": 6,
        "extra": 1,
        "extra_share": 1 / 9,
        "same_texture_pairs": 2,
        "pairs": 3,
        "adjacency": pytest.approx(-2 / 3),
        "score": pytest.approx(score),
    }
    assert game.progress(state) == (pytest.approx(score / 2) if density == "sparse" else None)
    assert game.state_text(state) == (
        "#....\n#....\n#....\n#x...\n+++##\ncovered 3 of 9, extra 1, alike 2 of 3\nscore -0.17 of 2.00"
    )
    start = after(game)
    assert game.feature_names == tuple(game.state_features(start)) == tuple(features)
    assert (game.state_features(start)["score"], game.progress(start)) == (0.0, 0.0 if density == "sparse" else None)


def test_house_build_by_hand() -> None:
    game = HouseBuild(
        num_houses=4, size=(3, 3, 3), blocks={"a": ["stone_bricks"], "b": ["oak_planks"]}, persistent=True
    )
    house = game.tasks("train")[0]
    start = after(game, task=house)
    features = game.state_features(start)
    assert list(features) == [
        *("solid_cells", "covered_share", "missing", "extra", "extra_share", "exact_share", "damage", "spiders_killed"),
        *("used/a/stone_bricks", "used/a/oak_planks", "used/b/stone_bricks", "used/b/oak_planks"),
        *("due/stone_bricks", "due/oak_planks", "blueprint/stone_bricks", "blueprint/oak_planks", "score"),
    ]
    assert len(features) == 17  # critics know the turn
    solid = features["solid_cells"]
    assert features["due/stone_bricks"] + features["due/oak_planks"] == features["missing"] == solid
    assert features["damage"] == sum(start.attacks)
    assert features["score"] == pytest.approx(-0.2 * min(1, sum(start.attacks) / 5))

    plan = start.task.data
    layer, legend = plan["layers"][0], plan["legend"]
    kind = legend[layer[0][0]]
    x, y, z = plan["origin"]
    wrong, own = ("a", "b") if kind == "oak_planks" else ("b", "a")
    other = {"a": "stone_bricks", "b": "oak_planks"}[wrong]
    cell = f"{x} {y} {z} {x} {y} {z}"
    state = after(
        game, {own: f"/fill {cell} {kind}\n/kill", wrong: ""}, {own: "", wrong: f"/fill {cell} {other}"}, task=house
    )
    features = game.state_features(state)
    assert features[f"used/{own}/{kind}"] == features[f"used/{wrong}/{other}"] == 1
    assert features["covered_share"] == pytest.approx(1 / solid)
    assert (features["exact_share"], features["spiders_killed"]) == (0, 1)
    assert features["due/stone_bricks"] + features["due/oak_planks"] == solid  # covered, but by the wrong kind
    assert features["score"] == pytest.approx(2 / solid)
    text = game.state_text(state)
    assert text.startswith("y 0\n0 !")
    assert f"covered 1 of {solid}, exact 0, extra 0\nspiders dead\na has stone_bricks" in text
    # all houses have the same names
    assert {tuple(game.state_features(after(game, task=task))) for task in game.tasks("train")} == {game.feature_names}


@pytest.mark.parametrize("density", ["dense", "sparse"])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_kill_counts_in_the_turn_that_critics_are_told_about(density: str, persistent: bool) -> None:
    settings = {"num_spiders": 3, "spider_damage": (2, 2), "feedback": "perfect", "horizon": 4}
    game = HouseBuild(
        num_houses=4, size=(3, 3, 3), persistent=persistent, reward_density=density, prompt="compact", **settings
    )
    start, _ = game.reset(game.tasks("train")[0], random.Random(0))
    # 3 spiders of 2 damage are more than the health of 5: the full penalty of 0.2, in an empty world
    assert game.state_features(start)["score"] == pytest.approx(-0.2)
    assert "spiders 6 of 5\n" in game.state_text(start)
    step = game.step(start, {"builder_1": "/kill", "builder_2": ""})
    killed = game.state_features(step.state)
    assert (step.info["score"], killed["score"], killed["spiders_killed"], killed["damage"]) == (0, 0, 1, 6)
    assert game.progress(step.state) == (0 if density == "sparse" else None)
    text = game.state_text(step.state)
    assert text.endswith("\nscore 0.00 of 2.00")
    assert f"\n{'spiders dead' if persistent else 'spiders 6 of 5, killed in the last turn'}\n" in text
    # What agents are advised is about the next turn, in which the spiders live again unless the game is persistent.
    assert ("/kill" in step.observations["builder_1"]) is not persistent
    # A turn without a kill: -0.2 again, or still dead
    step = game.step(step.state, {"builder_1": "", "builder_2": ""})
    features = game.state_features(step.state)
    assert features["score"] == step.info["score"] == pytest.approx(0 if persistent else -0.2)
    assert features["spiders_killed"] == persistent
    assert game.progress(step.state) == (pytest.approx(0 if persistent else -0.1) if density == "sparse" else None)


def test_every_task_of_several_turns_describes_and_draws_its_states() -> None:
    """Of those in configs/environments; Workload, which measures speed, has nothing to describe."""
    kinds = set()
    for path in (REPOSITORY / "configs" / "environments").glob("*.yaml"):
        module, _, name = yaml.safe_load(path.read_text())["data"]["environment"]["class_path"].rpartition(".")
        kinds.add(getattr(importlib.import_module(module), name))
    several = {kind for kind in kinds if getattr(kind, "horizon", None) != 1} - {Workload}
    assert {Relay, StrBuild, HouseBuild, Coding} < several
    for kind in several:
        for name in ("state_text", "state_features", "render_turn"):
            assert getattr(kind, name) is not getattr(Environment, name), (kind, name)


def test_relay_by_hand() -> None:
    game = Relay(horizon=4)
    state = State(((3, 1), (0, 2), (5, 6), (7, 7)), 0, ((True, True), (False, True)))
    assert game.state_features(state) == {"successes": 1, "right/relay_1": 1, "right/relay_2": 2}
    assert game.state_text(state) == "ok bad x5 x6"
    assert game.progress(state) == 0.25
    over = replace(state, correct=(*state.correct, (True, True), (False, False)), answers=(4, 2, 0, 1, 6, 5, None, 9))
    picture = game.render_turn(over)
    assert picture.startswith("<svg")
    lines = ["relay_1, relay_2", "turn 1: x3 a4 ok, x1 a2 ok", "turn 4: x7 nothing bad, x7 a9 bad"]
    assert all(f">{line}<" in picture for line in lines)


def test_coding_by_hand() -> None:
    game = Coding()
    task = Task("t", {"prompt": "def f():\n", "test": "assert f()\nassert not f()", "entry_point": "f"})
    nothing = game.state_features(CodingState(task))
    assert (nothing["prompt_characters"], nothing["test_asserts"], sum(nothing.values())) == (9, 2, 11)
    assert game.state_text(CodingState(task)) == "no program yet"
    last = CodingScore({"main": 0.6, "tests": 0.75}, 3, 4, False, HelperUse(True, False, True), True, True, True, "", 1)
    features = game.state_features(CodingState(task, 1, last))
    assert features == {
        "prompt_characters": 9,
        "test_asserts": 2,
        "passed": 3,
        "passed_share": 0.75,
        "correct": False,
        "has_helper": True,
        "has_main": True,
        "parses": True,
        "calls_helper": True,
        "uses_helper": False,
        "wrapper": True,
        "timeouts": 1,
        "score": pytest.approx(1.35),
    }
    assert tuple(features) == tuple(nothing) == game.feature_names
    assert game.progress(CodingState(task, 1, last)) == pytest.approx(1.35 / 4)
    text = game.state_text(CodingState(task, 1, last))
    assert text == "helper, main, parses, calls helper; 3 of 4 tests pass; score 1.35 of 4.00"


def test_the_program_of_the_last_turn_is_what_coding_tells() -> None:
    game = Coding()
    state = after(game, {"helper": "", "main": "nothing"})
    assert state.turn == 1
    assert game.state_text(state).startswith("nothing; 0 of ")


def test_an_environment_without_state_features_has_none() -> None:
    game = MatrixGame()
    assert (game.feature_names, game.has_state_text, game.progress(None)) == ((), False, None)
    assert StrBuild().has_state_text


# Who learns of it


class Described(TwoTurns):
    """The game with state features, text and progress for critics; steps change the state in place."""

    def state_features(self, state: Any) -> dict[str, float]:
        return {"turn": state.turn, "previous": state.previous}

    def state_text(self, state: Any) -> str:
        return f"turn {state.turn} after {state.previous}"

    def progress(self, state: Any) -> float:
        return state.turn / 2


REWARDS = (torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.ones(4, 2, 2))


def policies() -> dict[str, TabularPolicy]:
    generator = torch.Generator().manual_seed(0)
    return {name: TabularPolicy(torch.randn(len(HISTORIES), 2, generator=generator)) for name in AGENTS}


@pytest.mark.parametrize("sampler", [Parallel(), Tree()])
def test_states_are_noted_before_each_turn_and_no_agent_sees_them(sampler: Parallel) -> None:
    plain, described = (
        sampler.rollout(cls(*REWARDS), cls(*REWARDS).tasks("train"), actors_of(policies()), 3, "cpu", num_generations=2)
        for cls in (TwoTurns, Described)
    )
    assert len(plain) == len(described) > 4
    for one, other in zip(plain, described, strict=True):
        described = {"features", "state_text", "progress"}
        for turn, without in zip(other.record()["turns"], one.record()["turns"], strict=True):
            assert described <= set(turn)
            assert {name: value for name, value in turn.items() if name not in described} == without
        for turn, without in zip(other.turns, one.turns, strict=True):
            assert turn.observations == without.observations
            for agent_id in AGENTS:
                assert turn.actions[agent_id].prompt_ids == without.actions[agent_id].prompt_ids
        first, second = other.turns
        done = 2 * int(first.actions["first"].text) + int(first.actions["second"].text)
        assert (first.features, second.features) == ({"turn": 0, "previous": 0}, {"turn": 1, "previous": done})
        assert (first.state_text, second.state_text) == ("turn 0 after 0", f"turn 1 after {done}")
        assert (first.progress, second.progress) == (0.0, 0.5)


def test_a_described_game_shows_agents_what_it_showed_before() -> None:
    game = StrBuild(words=["L"], eval_words=["I"], horizon=2, persistent=True, feedback="none")
    episode = Episode(game, game.tasks("train")[0], 0, 0)
    act_all([episode], [{agent_id: Action("/setblock 0 0 0 stone") for agent_id in OWN}])
    shown = [*episode.trajectory.turns[0].observations.values(), *episode.observations.values()]
    assert not any("covered" in text or "score" in text.lower() for text in shown)
    assert "covered 1 of 9" in episode.state_text


@pytest.mark.parametrize(
    ("name", "returned", "message"),
    [
        ("state_features", {"turn": float("nan")}, r"Described \(task 'train 0'\): state_features has 'turn': nan"),
        ("state_features", {"turn": "one"}, "state_features has 'turn': 'one'"),
        ("state_features", [1.0], "state_features is .*it must be a dict of numbers by name"),
        ("state_text", None, "returned None from state_text; return a text"),
        ("progress", float("inf"), "has 'progress': inf"),
    ],
)
def test_bad_descriptions_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, returned: Any, message: str) -> None:
    game = Described(*REWARDS)
    monkeypatch.setattr(Described, name, lambda self, state: returned)
    with pytest.raises(ConfigurationError, match=message):
        Episode(game, game.tasks("train")[0], 0, 0)
