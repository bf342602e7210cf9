"""Pictures of builds: every state of a cell can be told from the others in grey, and nothing in a name is markup."""

from __future__ import annotations

from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest

from collm.environments.building.house_build import HouseBuild
from collm.environments.building.picture import MARGIN, SIDE, TITLE, draw_builds
from collm.environments.building.str_build import StrBuild
from collm.samplers.base import Episode, act_all
from collm.trajectory import Action

# One row: right by agent 0, right by agent 1, wrong, missing, extra by agent 0, extra by agent 1, empty
CELLS = [(x, 0, 0) for x in range(7)]
TARGET = dict.fromkeys(CELLS[:4], "stone")
WORLD = {CELLS[0]: "stone", CELLS[1]: "stone", CELLS[2]: "glass", CELLS[4]: "stone", CELLS[5]: "stone"}
BUILDERS = {CELLS[0]: 0, CELLS[1]: 1, CELLS[2]: 0, CELLS[4]: 0, CELLS[5]: 1}


def test_every_state_of_a_cell_looks_different_in_grey():
    picture = draw_builds([("", [CELLS])], TARGET, WORLD, BUILDERS, ("a", "b"), kinds_count=True).pixels(scale=2)
    grey = picture @ np.array([0.299, 0.587, 0.114])
    side, inside = 2 * SIDE, 6  # without the outline of the target
    tiles = []
    for index in range(len(CELLS)):
        left, top = 2 * MARGIN + index * side, 2 * TITLE
        tiles.append(grey[top + inside : top + side - inside, left + inside : left + side - inside])
    for first, second in combinations(tiles, 2):
        assert np.abs(first - second).mean() > 12  # of 255


def test_a_cell_looks_the_same_whatever_was_drawn_before_it():
    cells = [(0, 0, 0), (1, 0, 0)]
    alone = draw_builds([("", [cells])], {}, {cells[1]: "stone"}, {cells[1]: 0}, ("a", "b"), False).pixels()
    world = dict.fromkeys(cells, "stone")
    after = draw_builds([("", [cells])], {}, world, {cells[0]: 1, cells[1]: 0}, ("a", "b"), False).pixels()
    second = np.s_[2 * TITLE : 2 * (TITLE + SIDE), 2 * (MARGIN + SIDE) + 2 :]
    assert (alone[second] == after[second]).all()


def test_an_svg_is_well_formed_whatever_agents_are_called():
    text = draw_builds([("", [CELLS])], TARGET, WORLD, BUILDERS, ("</svg><script>", "\x00&"), kinds_count=False).svg()
    root = ElementTree.fromstring(text)
    assert not [node for node in root.iter() if node.tag.endswith("script")]
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert words[:2] == ["</svg><script>", "?&"]


def played(game, *joint_actions) -> Episode:
    episode = Episode(game, game.tasks("eval")[0], 0, 0, pictures=True)
    for texts in joint_actions:
        act_all([episode], [{agent_id: Action(text) for agent_id, text in zip(game.agent_ids, texts, strict=True)}])
    return episode


def test_blocks_belong_to_the_agent_that_placed_them_last():
    episode = played(
        StrBuild(horizon=3, persistent=True),
        ("/setblock 0 0 0 stone\n/setblock 1 0 0 stone\n/setblock 2 0 0 stone", "/setblock 1 0 0 obsidian"),
        ("/setblock 2 0 0 air", "/setblock 3 0 0 obsidian"),
    )
    assert episode.state.builders == {(0, 0, 0): 0, (1, 0, 0): 1, (3, 0, 0): 1}
    assert episode.trajectory.turns[1].info["builders"] == [0, 1, 1]


@pytest.mark.parametrize(("game", "line"), [(StrBuild, "/setblock 0 0 0 stone"), (HouseBuild, "/fill 0 0 0 0 0 0 {}")])
def test_every_turn_has_a_picture_and_the_episode_an_image(game, line):
    environment = game(horizon=2)
    kinds = getattr(environment, "kinds", ("stone",))
    episode = played(environment, (line.format(kinds[0]), ""), ("", ""))
    first, second = (turn.picture for turn in episode.trajectory.turns)
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert first != second  # the second turn starts with an empty world
    assert len(first) < 20_000
    image = environment.render(episode.trajectory)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


def test_training_episodes_keep_no_pictures():
    game = StrBuild(horizon=1)
    episode = Episode(game, game.tasks("train")[0], 0, 0)
    act_all([episode], [{agent_id: Action("") for agent_id in game.agent_ids}])
    assert episode.trajectory.turns[0].picture == ""
