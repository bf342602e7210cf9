"""Recorded episodes, played again in their environment with the texts that agents wrote."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from collm.environments.base import Environment, EpisodeFailure, Step
from collm.environments.building.house_build import HouseBuild
from collm.scoring.cases import CaseError, get
from collm.trajectory import Task

_ATTACKS = re.compile(r"Spiders attack with (\d+(?:, \d+)*) damage")


def replayed(environment: Environment, record: Mapping[str, Any], as_played: bool = True) -> tuple[Task, list[Step]]:
    """The task of a transcript, and its turns when the recorded actions are played again.

    Chance repeats itself by the seed of the episode. A transcript without one is of an earlier version: its spiders are
    read from it, and agents must be shown again what they were shown.

    Args:
        environment: The game.
        record: The transcript.
        as_played: Whether the environment is as it was; False with another form of the reward, for which observations
            are not compared.

    Raises:
        CaseError: The transcript is of another environment, not complete, or cannot be repeated.
    """
    task_id = get(record, "task_id", str)
    known = {task.task_id: task for split in ("train", "eval") for task in environment.tasks(split)}
    if task_id not in known:
        raise CaseError(f"task {task_id!r} is not one of the configured environment's")
    task, turns, seeded = known[task_id], get(record, "turns", list), "seed" in record
    state, observations = environment.reset(task, random.Random(get(record, "seed", int) if seeded else 0))
    if turns and not seeded and isinstance(environment, HouseBuild) and state.attacks:
        state = replace(state, attacks=recorded_attacks(turns[0]) or state.attacks)
        observations = {name: environment.first_observation(state, name) for name in environment.agent_ids}
    steps: list[Step] = []
    for number, turn in enumerate(turns, start=1):
        actions = {name: get(get(turn, "actions", dict), name, str) for name in environment.agent_ids}
        if as_played and not seeded and get(turn, "observations", dict) != dict(observations):
            raise CaseError(
                f"the transcript has no 'seed', and with another the agents would be shown something else in turn "
                f"{number} than the recorded observations; play the episode again, or give the config.yaml of its run "
                "with --config"
            )
        try:
            steps.append(environment.step(state, actions))
        except EpisodeFailure as failure:
            raise CaseError(str(failure)) from None
        state, observations = steps[-1].state, steps[-1].observations
    return task, steps


def recorded_attacks(turn: Mapping[str, Any]) -> tuple[int, ...]:
    """Damage of the spiders of HouseBuild from the first turn: of each if agents were told, else their sum."""
    listed = [_ATTACKS.search(text) for text in get(turn, "observations", dict, {}).values() if isinstance(text, str)]
    if listed and listed[0]:
        return tuple(map(int, listed[0][1].split(", ")))
    damage = get(get(get(turn, "info", dict, {}), "counts", dict, {}), "damage", int, -1)
    return (damage,) if damage >= 0 else ()
