"""BridgeBuild: scores worked by hand, maps with one sound lane, and what information is worth.

The river of the scores has 7 x 7 cells, of which the rows 0 and 6 are banks. The lane at x = 1 is sound, with pillars
at 1 1 and 1 4; that at x = 5 has a fake at 5 2 and a sound pillar at 5 5. A lane needs 3 planks, there are 4, and there
is water for 35 - 4 = 31. Both agents see 3 cells far, the upper one rows 0 to 3, the lower one rows 3 to 6.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from collm.environments.base import Step
from collm.environments.games import bridge_expert
from collm.environments.games.bridge_build import BridgeBuild
from collm.environments.games.bridge_maps import River
from collm.environments.games.bridge_rules import State, begin
from collm.errors import ConfigurationError
from collm.trajectory import Action, Trajectory, Turn

RIVER = River(7, 7, {(1, 1): True, (1, 4): True, (5, 2): False, (5, 5): True})


def game(**options: Any) -> BridgeBuild:
    small = {"width": 7, "height": 7, "lanes": 2, "pillars": 2, "vision": 3, "num_maps": 2, "num_eval": 1}
    return BridgeBuild(**{**small, **options})


def play(played: BridgeBuild, *turns: tuple[str, str]) -> tuple[State, list[Step]]:
    state = begin(played.rules, RIVER)
    steps = []
    for texts in turns:
        steps.append(played.step(state, dict(zip(played.agent_ids, texts, strict=True))))
        state = steps[-1].state
    return state, steps


PLANK = 5 / 31
SCORES: dict[str, tuple[dict[str, Any], list[tuple[str, str]], float]] = {
    "nothing": ({}, [("", "")], 0.0),
    "one probe": ({}, [("probe 1 1", "")], -0.05),
    "both probe": ({"probe_cost": 0.2}, [("probe 5 2", "probe 1 4\nprobe 5 5")], -0.6),
    "a pillar out of view": ({}, [("probe 1 4", "")], 0.0),
    "a pillar that comes into view": ({}, [("go 3 2\nprobe 1 4", "")], -0.05),
    "water": ({}, [("probe 2 2", "")], 0.0),
    "a fourth probe": ({}, [("probe 1 1\nprobe 5 2\nprobe 1 1\nprobe 5 2", "")], -0.15),
    "two of three planks": ({}, [("fill 1 2 1 3", "")], 5 * 2 / 3 - 2 * PLANK),
    "across": ({}, [("fill 1 3 1 2", "fill 1 5")], 5 + 2 - 3 * PLANK),
    "in two turns": ({}, [("fill 1 2 1 3", ""), ("", "fill 1 5")], 5 / 3 + 2 - PLANK),
    # both see row 3, and there is water for one plank; the second agent's is no new one
    "both lay the same plank": ({}, [("fill 1 3", "fill 1 3")], 5 / 3 - PLANK),
    "a pillar probed twice costs twice": ({}, [("probe 1 1\nprobe 1 1", "")], -0.1),
    "a pillar told that nobody probed": ({}, [("tell 1 1", "tell 1 4")], 0.0),
    "no command in the answer": ({}, [("I would build at 1 2.", "fill one two")], 0.0),
    "a plank twice": ({}, [("fill 1 2\nfill 1 2", "")], 5 / 3 - PLANK),
    "beside a fake": ({}, [("fill 5 1", "")], -12 - PLANK),
    "beside the same fake again": ({}, [("fill 5 1", ""), ("fill 5 3", "")], -12 * 0 - PLANK),
    # all of the lane, but the fake at 5 2 bears nothing
    "over a fake": ({}, [("fill 5 1\nfill 5 3", "fill 5 4")], -12 - 3 * PLANK),
    # 0 1, 2 1, 3 1 and 4 1: the pillar at 1 1 stays
    "all planks side by side": ({}, [("fill 0 1 4 1\nfill 1 2", "fill 1 5")], -4 * PLANK),
    "the first agent's planks first": ({}, [("fill 2 2 4 2\nfill 1 2", "fill 1 5")], 5 / 3 - 12 - 4 * PLANK),
    "on land": ({}, [("fill 1 0", "fill 1 6")], 0.0),
    "outside": ({}, [("fill 0 1 7 1", "fill -1 5")], 0.0),
    "out of view": ({}, [("fill 1 5", "fill 1 2")], 0.0),
    "late reward, before the end": ({"reward": "sparse"}, [("fill 1 2", "")], 0.0),
    "late reward": ({"reward": "sparse"}, [("probe 1 1", ""), ("fill 1 2 1 3", "fill 1 5")], 7 - 3 * PLANK - 0.05),
}


@pytest.mark.parametrize("name", SCORES)
def test_rewards_by_hand(name: str) -> None:
    options, turns, reward = SCORES[name]
    played = game(**options)
    _, steps = play(played, *turns)
    assert steps[-1].reward == pytest.approx(reward)
    assert played.min_reward <= steps[-1].reward <= played.max_reward


def test_an_episode_ends_with_the_crossing() -> None:
    state, (step,) = play(game(), ("fill 1 2 1 3", "fill 1 5"))
    assert (step.terminated, step.info["success"], step.observations, game().progress(state)) == (True, True, {}, 1.0)
    _, (step,) = play(game(), ("fill 5 1\nfill 5 3", "fill 5 4"))
    assert (step.terminated, step.info["success"], step.info["gap"]) == (False, False, 3)


def test_results_are_private_until_they_are_told() -> None:
    state, steps = play(game(prompt="compact"), ("probe 5 2\ntell 5 2", ""), ("tell 5 2", "tell 1 4"), ("tell 5 2", ""))
    shown = [step.observations["builder_2"] for step in steps]
    assert shown == ["turn 2 at 3 6", "turn 3 at 3 6\nknow 5 2 fake", "turn 4 at 3 6"]
    assert steps[0].observations["builder_1"] == "turn 2 at 3 0\nknow 5 2 fake"
    reasons = [[reason for _, reason in step.info["rejected"]["builder_1"]] for step in steps]
    assert reasons == [["not_probed"], [], []]  # the result of a probe is known after the turn
    assert steps[1].info["rejected"]["builder_2"] == [["tell 1 4", "not_probed"]]
    assert [step.info["messages"] for step in steps] == [0, 1, 1]
    assert [step.info["useful_messages"] for step in steps] == [0, 1, 0]
    assert (
        "The pillar at 5 2 is fake (you were told)."
        in play(game(), ("probe 5 2", ""), ("tell 5 2", ""))[1][1].observations["builder_2"]
    )
    assert state.agents[1].known == {(5, 2): False}


def test_texts_arrive_and_facts_are_limited() -> None:
    _, (step,) = play(game(communication="text"), ("say lane 1", "tell 1 4"))
    assert "builder_1 says: lane 1" in step.observations["builder_2"]
    assert [reason for _, reason in step.info["rejected"]["builder_2"]] == ["unknown_command"]
    _, steps = play(game(message_limit=1), ("probe 1 1\nprobe 5 2", ""), ("tell 1 1\ntell 5 2", ""))
    assert steps[1].info["rejected"]["builder_1"] == [["tell 5 2", "over_limit"]]


def test_features_and_text_by_hand() -> None:
    played = game()
    state, _ = play(played, ("probe 1 1\nprobe 5 2", "fill 1 5"), ("tell 5 2", ""))
    assert played.state_features(state) == {
        "gap_share": pytest.approx(2 / 3),
        "connected": 0.0,
        "planks_left": 3.0,
        "fakes_touched": 0.0,
        "known_sound/builder_1": 1.0,
        "known_fake/builder_1": 1.0,
        "known_sound/builder_2": 0.0,
        "known_fake/builder_2": 1.0,
        "fakes_known_to_both": 1.0,
    }
    assert played.state_text(state) == (
        "gap 2 planks 3 touched 0\npillar 1 1 sound know 1\npillar 1 4 sound know\npillar 5 2 fake know 1 2\n"
        "pillar 5 5 sound know"
    )
    assert played.progress(state) == pytest.approx(1 / 3)
    assert played.feature_names == tuple(played.state_features(state))


def test_metrics_and_picture() -> None:
    played = game(communication="text")
    state, steps = play(played, ("probe 1 1\ndance", "say <b>"), ("fill 1 2", ""))
    trajectory = Trajectory(played.tasks("train")[0], 0, 4, played.max_reward)
    for step in steps:
        acts = {name: Action("") for name in played.agent_ids}
        trajectory.turns.append(Turn(dict.fromkeys(acts, ""), acts, step.reward, step.terms, step.info))
    expected = {"success": 0, "gap": 2, "rejected": 1, "probes": 1, "planks": 1, "fakes": 0, "messages": 1}
    assert played.metrics(trajectory) == expected | {"useful_messages": 0}
    assert played.render_turn(steps[0].state).count("&lt;b&gt;") == 1
    assert "<b>" not in played.render_turn(state)


def test_only_the_sound_lane_has_enough_planks() -> None:
    """With a fake in the sound lane too, every crossing takes more planks than there are."""
    played = BridgeBuild(num_maps=60)
    for task in played.tasks("train"):
        river = River.of(task.data)
        assert river.gap(()) == played.rules.planks - 1
        fakes = {x for x, _ in river.fakes}
        columns = {x for x, _ in river.pillars}
        assert (len(columns), len(fakes), len(river.fakes)) == (3, 2, 2)
        for cell in [cell for cell in river.pillars if cell[0] not in fakes]:
            assert River(river.width, river.height, {**river.pillars, cell: False}).gap(()) > played.rules.planks


def test_information_has_to_be_bought_and_told() -> None:
    """A lane chosen without probes is right in one of three maps; who probes and tells is always right."""
    told, blind = BridgeBuild(num_maps=300), BridgeBuild(num_maps=300, max_probes=0)
    rivers = [River.of(task.data) for task in told.tasks("train")]
    assert all(bridge_expert.solved_in(told.rules, river) for river in rivers)
    solved = sum(bridge_expert.solved_in(blind.rules, river) is not None for river in rivers)
    assert solved / 300 == pytest.approx(1 / 3, abs=0.08)  # 3 standard deviations
    assert all(task not in told.tasks("train") for task in told.tasks("eval"))


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "odd pillars": ({"pillars": 3}, ["pillars is 3", "even"]),
    "too many pillars": ({"pillars": 6}, ["pillars is 6", "2 rows"]),
    "narrow": ({"lanes": 3, "width": 6}, ["need a width of 7"]),
    "too many maps": ({"num_maps": 10_000}, ["different maps"]),
    "too many planks": ({"spare": 2}, ["spare is 2"]),
    "too short": ({"horizon": 1}, ["1 turns are too few", "raise horizon"]),
    "communication": ({"communication": "wave"}, ["'wave'", "facts"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused(name: str) -> None:
    options, words = BAD[name]
    with pytest.raises(ConfigurationError) as caught:
        game(**options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_demonstrators_write_commands_that_count() -> None:
    played = BridgeBuild(num_maps=5)
    rng = random.Random(0)
    state, observations = played.reset(played.tasks("train")[0], rng)
    rejected = 0
    while observations:
        step = played.step(state, played.demonstrate(state, rng))
        rejected += sum(reason in ("unknown_command", "bad_numbers") for entries in step.info["rejected"].values()
                        for _, reason in entries)  # fmt: skip
        state, observations = step.state, step.observations
    assert rejected == 0
