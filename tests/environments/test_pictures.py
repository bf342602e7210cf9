"""Pictures of turns: small enough for a transcript, and well-formed whatever agents write."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest

from collm.environments.base import Environment
from collm.environments.building.house_build import HouseBuild
from collm.environments.contract import drawn
from collm.environments.games.bridge_build import BridgeBuild
from collm.environments.games.resource_gathering import ResourceGathering

FAR = {"vision": 25, "steps": 30, "max_probes": 10, "message_limit": 10}


@pytest.mark.parametrize(
    ("game", "is_drawn"),
    [
        (ResourceGathering(size=12, num_maps=1, num_eval=1), True),
        (ResourceGathering(size=60, horizon=40, steps=20, num_maps=1, num_eval=1), False),
        (BridgeBuild(width=50, height=30, horizon=20, num_maps=1, num_eval=1, **FAR), False),
        (HouseBuild(size=(6, 7, 7), num_houses=1, num_eval=1), True),
        (HouseBuild(size=(24, 24, 24), num_houses=1, num_eval=1), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_picture_that_is_too_large_is_left_out(game: Environment, is_drawn: bool) -> None:
    state, _ = game.reset(game.tasks("eval")[0], random.Random(0))
    step = game.step(state, dict.fromkeys(game.agent_ids, "go 1 1"))
    assert drawn(game, step.state).startswith("<svg" if is_drawn else "")
    assert bool(drawn(game, step.state)) == is_drawn


@pytest.mark.parametrize("game", [ResourceGathering, BridgeBuild])
def test_messages_with_control_characters_make_well_formed_pictures(
    game: type[ResourceGathering | BridgeBuild],
) -> None:
    played = game(communication="text", num_maps=1, num_eval=1)
    state, _ = played.reset(played.tasks("eval")[0], random.Random(0))
    step = played.step(state, dict.fromkeys(played.agent_ids, "say a\x00b\x1b\ufffe<c> \ud800é"))
    texts = [element.text or "" for element in ElementTree.fromstring(drawn(played, step.state)).iter()]
    assert sum(text.endswith(" sends: a?b??<c> ?é") for text in texts) == len(played.agent_ids)
