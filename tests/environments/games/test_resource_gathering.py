"""ResourceGathering: scores worked by hand, maps, messages, and the bound for teams that do not talk.

The map of the scores has 9 x 9 cells. `a` takes wood and starts at 1 4 among stone and iron; `b` takes those and starts
at 7 4 among wood. The nearest wood is 5 steps from `a`, the nearest stone 5 steps from `b`; both reach 1 step, so both
have 4 steps to go. Goals: 3 wood, 3 stone, 1 iron.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from collm.environments.base import Step
from collm.environments.games import gathering_expert
from collm.environments.games.gathering_bound import SilentBound
from collm.environments.games.gathering_maps import Map
from collm.environments.games.gathering_rules import State, begin
from collm.environments.games.grid import distance, viewed, walk
from collm.environments.games.resource_gathering import ResourceGathering
from collm.errors import ConfigurationError
from collm.trajectory import Action, Trajectory, Turn

TOOLS = {"a": ["wood"], "b": ["stone", "iron"]}
CELLS = [
    *([0, 3, "stone", 2], [1, 3, "iron", 1], [2, 5, "stone", 1], [0, 5, "rubble", 1]),
    *([6, 4, "wood", 2], [8, 4, "wood", 1]),
]
FIELD = {"size": 9, "starts": [[1, 4], [7, 4]], "cells": CELLS}
# All of it in one cell between the two.
MIXED = {**FIELD, "cells": [[4, 4, "wood", 3], [4, 4, "stone", 3], [4, 4, "iron", 1]]}


def game(**options: Any) -> ResourceGathering:
    return ResourceGathering(**{"tools": TOOLS, "size": 9, "distance": 5, "num_maps": 2, "num_eval": 1, **options})


def play(played: ResourceGathering, field: dict, *turns: tuple[str, str]) -> tuple[State, list[Step]]:
    state = begin(played.rules, Map.of(field))
    steps = []
    for texts in turns:
        steps.append(played.step(state, dict(zip("ab", texts, strict=True))))
        state = steps[-1].state
    return state, steps


def commands(*lines: str) -> str:
    return "\n".join(lines)


STONE, WOOD = "tell stone 0 3", "tell wood 6 4"
SCORES: dict[str, tuple[dict[str, Any], dict, list[tuple[str, str]], float]] = {
    "nothing": ({}, FIELD, [("", "")], 0.0),
    "two steps nearer": ({}, FIELD, [("go 3 4", "")], 0.05 * 2),
    "a long way ends after four steps": ({}, FIELD, [("go 8 4", "")], 0.05 * 4 + 0.15),
    "away": ({}, FIELD, [("", "go 8 0")], 0.0),
    "two of three stones told": ({}, FIELD, [(STONE, "")], 0.1 * 2 / 3),
    "both tell": ({}, FIELD, [(STONE, WOOD)], 0.1 * 4 / 3),
    "told twice": ({}, FIELD, [(STONE, ""), (STONE, "")], 0.0),
    "a cell that the sender cannot see": ({}, FIELD, [(WOOD, "")], 0.0),
    "a cell that holds something else": ({}, FIELD, [("tell iron 0 3", "")], 0.0),
    "rubble": ({}, FIELD, [("tell rubble 0 5", "")], 0.0),
    "what only the sender can use": ({}, FIELD, [("go 5 4", ""), ("tell wood 6 4", "")], 0.0),
    "one fact more than the limit": ({}, FIELD, [(commands(STONE, "tell iron 1 3"), "")], 0.1 * 2 / 3),
    # 2 / 3 + 1 is more than a sender can get
    "two facts": ({"message_limit": 2}, FIELD, [(commands(STONE, "tell iron 1 3"), "")], 0.1),
    # b walks to 3 4 and sees 2 5 itself
    "told what the other one sees by then": ({}, FIELD, [("tell stone 2 5", "go 3 4")], 0.05 * 4 + 0.15),
    "one of three stones": ({}, FIELD, [("", "go 3 4\ntake 2 5")], 0.05 * 4 + 0.15 + 8 / 9),
    "told of what is taken meanwhile": ({}, FIELD, [("tell stone 2 5", "go 3 4\ntake 2 5")], 0.35 + 8 / 9),
    "arrived before": ({}, FIELD, [("", "go 3 4"), ("", "take 2 5")], 8 / 9),
    "the wrong tool": ({}, FIELD, [("take 0 3", "")], -0.1),
    "out of reach": ({}, FIELD, [("", "take 2 5")], -0.1),
    "outside": ({}, FIELD, [("take -1 4", "take 4 9")], -0.2),
    "a third attempt is not counted": ({}, FIELD, [("take 1 1\ntake 1 1\ntake 1 1", "")], -0.2),
    # Each has 2 steps to go and arrives; a gets the wood, b the rest.
    "both from one cell": ({}, MIXED, [("go 3 4\ntake 4 4", "go 5 4\ntake 4 4")], 8 + 7 + 0.05 * 4 + 0.3),
    # the wood is a's alone: b stands there too, arrives at nothing of its own, and takes in vain
    "both take the same wood": (
        {},
        FIELD,
        [("go 5 4\ntake 6 4", "take 6 4")],
        8 * 2 / 9 + 0.05 * 4 + 0.15 - 0.1,
    ),
    "what was taken a turn before": ({}, MIXED, [("go 3 4\ntake 4 4", ""), ("take 4 4", "")], -0.1),
    "no command in the answer": ({}, FIELD, [("I would walk to 3 4.", "[]")], 0.0),
    "the same cell twice": ({}, MIXED, [("go 3 4\ntake 4 4\ntake 4 4", "go 5 4\ntake 4 4")], 15.5 - 0.1),
    "more than is needed": (
        {},
        {**FIELD, "cells": [*CELLS, [4, 4, "wood", 5]]},
        [("go 3 4\ntake 4 4", "")],
        8 / 3 + 0.05 * 2 + 0.15,
    ),
    "late reward, before the end": ({"reward": "sparse"}, FIELD, [("go 3 4", "")], 0.0),
    # 0.1 for two steps and 0.2 / 3 for the fact, paid in the last turn
    "late reward": ({"reward": "sparse"}, FIELD, [("go 3 4", ""), (STONE, ""), ("", ""), ("", "")], 0.1 + 0.2 / 3),
    "talking is not allowed": ({"communication": "none"}, FIELD, [(STONE, WOOD)], 0.0),
    "words instead of facts": ({"communication": "text"}, FIELD, [(STONE, "say wood at 6 4")], 0.0),
}


@pytest.mark.parametrize("name", SCORES)
def test_rewards_by_hand(name: str) -> None:
    options, field, turns, reward = SCORES[name]
    played = game(**options)
    _, steps = play(played, field, *turns)
    assert steps[-1].reward == pytest.approx(reward)
    assert played.min_reward <= steps[-1].reward <= played.max_reward


def test_an_episode_ends_with_the_last_resource() -> None:
    state, (step,) = play(game(), MIXED, ("go 3 4\ntake 4 4", "go 5 4\ntake 4 4"))
    assert (step.terminated, step.info["success"], step.observations) == (True, True, {})
    assert game().progress(state) == 1.0
    _, (step,) = play(game(), MIXED, ("go 3 4\ntake 4 4", "go 5 4"))
    assert (step.terminated, step.info["success"], step.info["progress"]) == (False, False, pytest.approx(1 / 3))


def test_a_fact_arrives_with_the_true_amount_before_the_next_turn() -> None:
    _, steps = play(game(prompt="compact"), FIELD, (STONE, ""), ("", ""))
    assert steps[0].observations["b"] == "turn 2 at 7 4\ngo 0 3\ntake 0 3"
    assert steps[1].observations == {"a": "turn 3 at 1 4", "b": "turn 3 at 7 4\ngo 0 3\ntake 0 3"}
    full = play(game(), FIELD, (STONE, ""))[1][0].observations
    assert "- 2 stone at 0 3" in full["b"]
    assert "stone" not in full["a"]  # shown before, and nothing of it is for a


def test_texts_arrive_and_are_cut() -> None:
    _, (step,) = play(
        game(communication="text", max_characters=10), FIELD, ("say come here, now\nsay more", "say \ud800")
    )
    assert step.observations["b"].splitlines()[1] == "a says: come here,"
    assert step.info["messages"] == 2
    assert [reason for _, reason in step.info["rejected"]["a"]] == ["over_limit"]
    assert "b says: ?" in step.observations["a"]


def test_what_has_no_effect_is_told() -> None:
    _, (step,) = play(game(), FIELD, ("dance\ngo x y\ngo 1 4\ngo 1 4", ""))
    reasons = [reason for _, reason in step.info["rejected"]["a"]]
    assert reasons == ["unknown_command", "bad_numbers", "over_limit"]
    assert "Without effect: go x y  (the command needs other numbers)" in step.observations["a"]


def test_without_messages_nothing_depends_on_the_other() -> None:
    """The bound rests on it: own observations are the same whatever the other one does."""
    played = game(communication="none", horizon=6)
    rng = random.Random(0)
    for task in (Map.of(FIELD), Map.of(MIXED), Map.of(played.tasks("train")[0].data)):
        own = [random_answer(rng) for _ in range(5)]
        seen = set()
        for _ in range(6):
            state, shown = begin(played.rules, task), []
            for text in own:
                step = played.step(state, {"a": text, "b": random_answer(rng) + "\ntell wood 6 4"})
                if step.terminated:
                    break
                state = step.state
                shown.append(step.observations["a"])
            seen.add(tuple(shown))
        assert len({shown[: min(map(len, seen))] for shown in seen}) == 1


def random_answer(rng: random.Random) -> str:
    cells = [f"{rng.randrange(9)} {rng.randrange(9)}" for _ in range(3)]
    return f"go {cells[0]}\ntake {cells[1]}\ntake {cells[2]}"


def test_features_and_text_by_hand() -> None:
    played = game()
    state, _ = play(played, FIELD, (STONE, "go 3 4\ntake 2 5"))
    assert played.state_features(state) == {
        "progress": pytest.approx(1 / 9),
        "kinds_missing": 3.0,
        "missing/wood": 3.0,
        "missing/stone": 2.0,
        "missing/iron": 1.0,
        "distance/a": 4.0,
        "known_cells/a": 0.0,
        "knows/a": 0.0,
        "distance/b": 1.0,  # from 3 4 to the iron at 1 3 are 2 steps
        "known_cells/b": 1.0,  # the stone at 0 3, which it was told of
        "knows/b": 1.0,
    }
    assert played.state_text(state) == (
        "missing wood 3 stone 2 iron 1\nagent 1 at 1 4 distance 4 know 0\nagent 2 at 3 4 distance 1 know 1"
    )
    assert played.feature_names == tuple(played.state_features(state))


def test_metrics_count_messages_and_useful_ones() -> None:
    played = game()
    task = played.tasks("train")[0]
    trajectory = Trajectory(task, 0, 4, played.max_reward)
    _, steps = play(played, FIELD, (STONE, "tell rubble 0 5"), (STONE, WOOD), ("take 0 0", ""))
    for step in steps:
        acts = {name: Action("") for name in "ab"}
        trajectory.turns.append(Turn(dict.fromkeys("ab", ""), acts, step.reward, step.terms, step.info))
    assert played.metrics(trajectory) == {
        "success": 0.0,
        "progress": 0.0,
        "rejected": 2.0,
        "messages": 3.0,
        "useful_messages": 2.0,
        "wasted": 1.0,
    }


def test_a_picture_shows_walks_and_messages_and_escapes_them() -> None:
    played = game(communication="text")
    state, _ = play(played, FIELD, ("go 3 4\nsay <script>", ""))
    picture = played.render_turn(state)
    assert picture.startswith("<svg")
    assert picture.count("<polyline") == 2
    assert "a sends: &lt;script&gt;" in picture


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "level 1": {"level": 1},
    "level 3, late": {"level": 3, "horizon": 8, "reward": "sparse"},
    "three agents": {"tools": {"a": ["wood"], "b": ["stone"], "c": ["iron"]}},
    "four agents": {
        "tools": {"a": ["wood"], "b": ["stone"], "c": ["iron"], "d": ["clay"]},
        "goals": {"wood": 3, "stone": 3, "iron": 2, "clay": 2},
        "size": 17,
        "distance": 5,
        "horizon": 6,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_scripted_team_solves_every_map_within_the_range_of_rewards(name: str) -> None:
    played = ResourceGathering(**{"num_maps": 30, "num_eval": 5, **VARIANTS[name]})
    for task in played.tasks("eval"):
        state, observations = played.reset(task, random.Random(0))
        while observations:
            step = played.step(state, gathering_expert.expert(played.rules, state))
            assert played.min_reward <= step.reward <= played.max_reward
            state, observations = step.state, step.observations
        assert step.info["success"]


def test_camps_hold_what_another_one_needs() -> None:
    played = ResourceGathering(num_maps=100)
    maps = [Map.of(task.data) for split in ("train", "eval") for task in played.tasks(split)]
    assert len({json.dumps(place.data) for place in maps}) == 116
    for place in maps:
        assert distance(*place.starts) >= 8
        for start, kinds in zip(place.starts, ({"stone", "iron", "rubble"}, {"wood", "rubble"}), strict=True):
            seen = viewed([start], 1, place.size, place.size)
            assert {kind for cell, held in place.cells.items() if cell in seen for kind in held} == kinds
    again = ResourceGathering(num_maps=100)
    assert again.tasks("eval") == played.tasks("eval")
    assert ResourceGathering(num_maps=100, seed=1).tasks("eval") != played.tasks("eval")


def test_the_bound_is_that_of_counting_every_walk() -> None:
    """One cell per kind and two turns: it is found in the first, or taken unseen in the second."""
    options = {"tools": {"a": ["wood"], "b": ["stone"]}, "goals": {"wood": 1, "stone": 1}, "size": 7, "level": 1}
    played = game(**options, distance=3, steps=2, horizon=3)
    rules = type(played.rules)(**{**vars(played.rules), "horizon": 2, "max_takes": 1})
    bound = SilentBound(rules, size=7, apart=3, level=1)
    inside = list(product(range(7), range(7)))
    wins = total = 0
    for start in product(range(1, 6), range(1, 6)):
        camps = [camp for camp in product(range(1, 6), range(1, 6)) if distance(start, camp) >= 3]
        places = [
            (camp[0] + dx, camp[1] + dy) for camp in camps for dx, dy in product((-1, 0, 1), (-1, 0, 1)) if dx or dy
        ]
        best = 0
        for first in (cell for cell in inside if distance(start, cell) <= 2):
            seen = viewed(walk(start, first, 2), 1, 7, 7)
            found = sum(place in seen for place in places)
            unseen = [place for place in places if place not in seen]
            taken = [cell for cell in inside if distance(first, cell) <= 2 + rules.reach]
            best = max(best, found + max(unseen.count(cell) for cell in taken))
        wins += best
        total += len(places)
        if places:
            assert bound.best(0, start)[0] == pytest.approx(best / len(places))
    assert bound.value() == pytest.approx(wins / total)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one agent": ({"tools": {"a": ["wood"]}}, ["tools", "2 to 4 agents"]),
    "a kind for two": ({"tools": {"a": ["wood", "iron"], "b": ["stone", "iron"]}}, ["each kind to one agent"]),
    "no tool": ({"goals": {"wood": 3, "stone": 3, "iron": 1, "clay": 1}}, ["each kind to one agent"]),
    "a goal of nothing": ({"goals": {"wood": 0, "stone": 3, "iron": 1}}, ["goals: wood is 0"]),
    "too far": ({"reach": 2}, ["reach is 2", "see"]),
    "too short": ({"horizon": 1}, ["cannot be solved", "1 turns are too few", "raise horizon"]),
    "no room": ({"distance": 30}, ["30 steps apart", "lower distance"]),
    "a small camp": (
        {"tools": {"a": ["wood"], "b": ["stone", "iron", "clay"]}, "goals": dict(wood=3, stone=3, iron=3, clay=3)}
        | {"level": 3},
        ["11 cells", "it has 8", "raise vision"],
    ),
    "communication": ({"communication": "shout"}, ["'shout'", "facts"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name: str) -> None:
    options, words = BAD[name]
    with pytest.raises(ConfigurationError) as caught:
        game(**options)
    assert all(word in str(caught.value) for word in words), caught.value


LESS_WOOD = {**FIELD, "cells": [entry for entry in CELLS if entry[2] != "wood"]}
FILES: dict[str, tuple[list[Any], list[str]]] = {
    "no json": ([FIELD, "{"], ["line 2", "is not JSON"]),
    "a number": ([3, FIELD], ["line 1", "expected one object"]),
    "a cell outside": ([FIELD, {**FIELD, "cells": [[9, 0, "wood", 1]]}], ["line 2", "outside of 0 to 8"]),
    "an unknown kind": ([FIELD, {**FIELD, "cells": [[1, 0, "gold", 1]]}], ["line 2", "'gold'"]),
    "a start too few": ([FIELD, {**FIELD, "starts": [[1, 4]]}], ["line 2", "1 starts for 2 agents"]),
    "a negative amount": ([FIELD, {**FIELD, "cells": [[1, 0, "wood", -1]]}], ["line 2", "amounts (from 1 on)"]),
    "half a cell": ([FIELD, {**FIELD, "starts": [[1.5, 4], [7, 4]]}], ["line 2", "whole numbers"]),
    "too little wood": ([LESS_WOOD, FIELD], ["map_0 cannot be solved", "too little wood"]),
    "held out and trained on": ([FIELD, MIXED, FIELD], ["also trained on"]),
    "one map": ([FIELD], ["train split has no tasks"]),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_of_maps_are_refused(name: str, tmp_path: Path) -> None:
    maps, words = FILES[name]
    path = tmp_path / "maps.jsonl"
    path.write_text("\n".join(text if isinstance(text, str) else json.dumps(text) for text in maps))
    with pytest.raises(ConfigurationError) as caught:
        game(path=str(path))
    assert all(word in str(caught.value) for word in words), caught.value


def test_maps_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "maps.jsonl"
    path.write_text(json.dumps(FIELD) + "\n\n" + json.dumps(MIXED))
    played = game(path=str(path))
    assert [Map.of(task.data) for task in played.tasks("train")] == [Map.of(FIELD)]
    assert [Map.of(task.data) for task in played.tasks("eval")] == [Map.of(MIXED)]
    with pytest.raises(ConfigurationError, match="cannot be read"):
        game(path=str(tmp_path / "none.jsonl"))
