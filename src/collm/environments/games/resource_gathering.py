"""ResourceGathering: agents with different tools each see at the start what only another one can use.

No agent can know where its own resources are, so the team has to talk, or to search. With `communication` set to
"none" it cannot talk; `collm.environments.games.gathering_bound` computes how often a team can succeed then.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from collm.environments.base import Tasks
from collm.environments.games import gathering_expert as scripted
from collm.environments.games.gathering_maps import LEVELS, RUBBLE, Map, random_maps, read_maps
from collm.environments.games.gathering_prompts import observation
from collm.environments.games.gathering_rules import (
    APPROACH,
    ARRIVE,
    COMPLETE,
    PROGRESS,
    USEFUL,
    WASTE,
    Rules,
    State,
    begin,
    known,
    missing,
    progress,
    resolve,
    work_distance,
)
from collm.environments.games.grid_game import Communication, GridGame, Prompt, UpTo100, UpTo1000
from collm.environments.games.svg import COLOURS, label, square
from collm.environments.pay import Density
from collm.errors import ConfigurationError
from collm.runtime.checks import Count, Range, Seed, check_number, checked, shown

DEFAULT_TOOLS = {"gatherer_1": ["wood"], "gatherer_2": ["stone", "iron"]}
DEFAULT_GOALS = {"wood": 3, "stone": 3, "iron": 1}
_KIND_COLOURS = {"wood": "#b58f56", "stone": "#9a9a9a", "iron": "#d8b4a0", "clay": "#c9785d", RUBBLE: "#d9d5c8"}


class ResourceGathering(GridGame):
    """Agents gather resources on a grid, each of the kinds that its tools are for, within a few turns.

    In a turn an agent walks, takes what is near, and may send a message, which arrives before the next turn. The reward
    of a turn is 8 times the progress (the mean over the kinds of gathered / goal, at most 1), 7 when everything is
    there, 0.1 for useful messages (at most, per sender), 0.05 for each step nearer to one's own resources, 0.15 for
    getting there first, and -0.1 for each vain attempt to take something. The episode ends when everything is there.

    Args:
        tools: Kinds of resource that each agent can take, by agent id: 2 to 4 agents, no kind in two lists. Default:
            gatherer_1 takes wood, gatherer_2 stone and iron.
        goals: Amount that the team needs of each kind. Default: 3 wood, 3 stone and 1 iron.
        size: Width and height of the map.
        level: How scattered resources are: all of a kind in one cell, in two or in three, with 0, 1 or 2 cells of
            rubble per camp, which nobody needs.
        distance: Smallest distance of two starts, in steps.
        vision: How far agents see from the cells they walk over, in steps, straight or diagonal.
        steps: Largest number of steps in a turn.
        reach: How far from an agent it can take things, in steps; at most `vision`.
        max_takes: Number of cells from which an agent can take in a turn.
        horizon: Largest number of turns of an episode.
        communication: "none", "facts" (what an agent has seen; false ones are not sent), or "text" of any kind.
        message_limit: Number of facts of an agent in a turn; further ones are rejected.
        max_characters: Length of a text; what is longer is cut.
        reward: "dense": every turn has its reward; "sparse": their sum, at the end.
        num_maps: Number of maps to train on.
        num_eval: Number of held-out maps, all different from those to train on; with `path` its last ones.
        path: File of maps, JSON lines with size, starts [[x, y], ...] and cells [[x, y, kind, amount], ...].
        seed: Seed of the maps.
        prompt: "full" explains the game, for instruction-tuned models; "compact" shows only what differs between turns,
            for small models.
    """

    rules: Rules
    score, counted = "progress", ("messages", "useful_messages", "wasted")

    @checked
    def __init__(
        self,
        tools: dict[str, list[str]] | None = None,
        goals: dict[str, int] | None = None,
        size: Count = 15,
        level: Annotated[int, Range(LEVELS[0], LEVELS[-1], whole=True)] = 2,
        distance: UpTo1000 = 8,
        vision: Annotated[int, Range(1, 20, whole=True)] = 1,
        steps: UpTo100 = 4,
        reach: Annotated[int, Range(0, 20, whole=True)] = 1,
        max_takes: UpTo100 = 2,
        horizon: UpTo1000 = 4,
        communication: Communication = "facts",
        message_limit: UpTo100 = 1,
        max_characters: UpTo1000 = 80,
        reward: Density = "dense",
        num_maps: Tasks = 200,
        num_eval: Tasks = 16,
        path: str | None = None,
        seed: Seed = 0,
        prompt: Prompt = "full",
    ) -> None:
        tools, goals = tools or DEFAULT_TOOLS, goals or DEFAULT_GOALS
        check_number("size", size, Range(2 * vision + 1, 200, whole=True))
        check_number("reach", reach, Range(0, vision, whole=True), "Agents take only from where they can see.")
        check_tools(tools, goals)
        self.rules = Rules(
            agent_ids=tuple(tools), tools={name: tuple(kinds) for name, kinds in tools.items()}, goals=dict(goals),
            vision=vision, steps=steps, reach=reach, max_takes=max_takes, horizon=horizon, communication=communication,
            message_limit=message_limit, max_characters=max_characters,
        )  # fmt: skip
        self.agent_ids = self.rules.agent_ids
        self.horizon, self.reward, self.prompt = horizon, reward, prompt
        if path is None:
            maps = random_maps(num_maps + num_eval, tools, goals, size, vision, distance, level, seed)
        else:
            maps = read_maps(path, len(tools), goals)
        train, held_out = maps[:-num_eval], maps[-num_eval:]
        self._set_maps("map", train, held_out)
        self._check_maps(train, held_out, path)
        team = len(tools)
        most = USEFUL * team + APPROACH * steps * team
        turns = horizon if reward == "sparse" else 1
        self.min_reward = -WASTE * max_takes * team * turns
        self.max_reward = PROGRESS + COMPLETE + ARRIVE * team + most * turns

    def _check_maps(self, train: Sequence[Map], held_out: Sequence[Map], path: str | None) -> None:
        """Refuse maps that the scripted team cannot solve with facts, and held-out maps that are trained on."""
        rules = Rules(**{**vars(self.rules), "communication": "facts"})
        seen = {str(place.data) for place in train}
        for split, maps in (("map", train), ("held_out", held_out)):
            for index, place in enumerate(maps):
                if split == "held_out" and str(place.data) in seen:
                    raise ConfigurationError(f"path: the last {len(held_out)} maps of {path} are held out, but map "
                                             f"{index + 1} of them is also trained on; remove one.")  # fmt: skip
                amounts = {kind: sum(held.get(kind, 0) for held in place.cells.values()) for kind in rules.goals}
                short = [kind for kind, goal in rules.goals.items() if amounts[kind] < goal]
                if short or scripted.solved_in(rules, place) is None:
                    why = f"it has too little {short[0]}" if short else f"{rules.horizon} turns are too few"
                    raise ConfigurationError(
                        f"{split}_{index} cannot be solved: {why} even for the scripted team that tells what it sees; "
                        "raise horizon, message_limit, steps or max_takes, or lower size or level"
                        + (f", or correct {path}." if path else ".")
                    )

    def begin(self, data: Mapping[str, Any]) -> State:
        """Every agent stands in its camp."""
        return begin(self.rules, Map.of(data))

    def resolve(self, state: State, texts: Sequence[str]) -> tuple[State, dict[str, float], dict[str, Any]]:
        """Walk, take, deliver messages; see `gathering_rules`."""
        return resolve(self.rules, state, texts)

    def outcome(self, state: State) -> tuple[bool, dict[str, Any]]:
        """Whether everything is there, the share of it that is, and where the agents stand."""
        positions = [list(gatherer.position) for gatherer in state.agents]
        return not missing(self.rules, state.gathered), {"progress": self.progress(state), "positions": positions}

    def observation(self, state: State, index: int, before: State | None) -> str:
        """See `gathering_prompts`."""
        return observation(self.rules, state, index, before, self.prompt)

    def state_features(self, state: State) -> dict[str, float]:
        """Progress; what is missing of each kind; of each agent, how far its work is, and how much of it is known."""
        needed = missing(self.rules, state.gathered)
        features = {"progress": progress(self.rules, state.gathered), "kinds_missing": float(len(needed))}
        features |= {f"missing/{kind}": float(needed.get(kind, 0)) for kind in self.rules.goals}
        for index, agent_id in enumerate(self.agent_ids):
            found = [fact for fact in known(self.rules, state, index) if fact[1] in needed]
            features[f"distance/{agent_id}"] = float(self._work_distance(state, index))
            features[f"known_cells/{agent_id}"] = float(len(found))
            features[f"knows/{agent_id}"] = float(bool(found))
        return features

    def _work_distance(self, state: State, index: int) -> int:
        return work_distance(self.rules, state, index, state.agents[index].position)

    def state_text(self, state: State) -> str:
        """What is missing, and of each agent its place, the way to its work, and what it knows."""
        needed = missing(self.rules, state.gathered)
        lines = ["missing " + " ".join(f"{kind} {amount}" for kind, amount in needed.items())]
        for index, gatherer in enumerate(state.agents):
            x, y = gatherer.position
            found = len([fact for fact in known(self.rules, state, index) if fact[1] in needed])
            lines.append(f"agent {index + 1} at {x} {y} distance {self._work_distance(state, index)} know {found}")
        return "\n".join(lines)

    def progress(self, state: State) -> float:
        """Share of the goal that the team has."""
        return progress(self.rules, state.gathered)

    def render_turn(self, state: State) -> str | None:
        """The map with what is left, what each agent has seen, its last walk, and what it sent."""
        things = []
        for cell, held in sorted(state.amounts.items()):
            for kind, amount in held.items():
                if amount:
                    things += [square(cell, _KIND_COLOURS.get(kind, "#c8c06a")), label(cell, f"{kind[0]}{amount}")]
        caption = f"progress {self.progress(state):.0%}"
        return self.draw(state, (state.map.size, state.map.size), [], things, 0.18, caption)

    def demonstrate(self, state: State, rng: random.Random) -> dict[str, str]:
        """What noisy demonstrators do: they know the commands, but neither what to report nor where to look."""
        return scripted.demonstration(self.rules, state, rng)


def check_tools(tools: Any, goals: Any) -> None:
    """Raise `ConfigurationError` unless 2 to 4 agents have one tool for each kind of the goals, and no other."""
    if not isinstance(tools, Mapping) or not 2 <= len(tools) <= len(COLOURS):
        raise ConfigurationError(f"tools is {shown(tools)}; give the kinds of each agent, by id, for 2 to 4 agents.")
    if not isinstance(goals, Mapping) or not goals:
        raise ConfigurationError(f"goals is {shown(goals)}; give the amount that is needed of each kind.")
    for kind, goal in goals.items():
        if not isinstance(kind, str) or not kind.isalpha() or kind != kind.lower() or kind == RUBBLE:
            raise ConfigurationError(f"goals names {shown(kind)}; use lower-case words other than {RUBBLE}.")
        check_number(f"goals: {kind}", goal, Range(1, 1000, whole=True))
    for agent_id, kinds in tools.items():
        if not isinstance(agent_id, str) or not agent_id.strip() or not isinstance(kinds, (list, tuple)) or not kinds:
            raise ConfigurationError(f"tools has {shown(agent_id)}: {shown(kinds)}; give a list of kinds by agent id.")
    listed = [kind for kinds in tools.values() for kind in kinds]
    if sorted(map(str, listed)) != sorted(goals):
        raise ConfigurationError(f"tools are for {listed} and goals are {list(goals)}; give each kind to one agent.")
