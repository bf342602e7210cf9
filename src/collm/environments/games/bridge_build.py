"""BridgeBuild: two agents find out which of several lanes across a river is sound, and build a crossing along it.

What an agent knows of its half is worth something only if it pays for probes and tells the other one: the value of
information. Without any probe the best team succeeds in one of `lanes` maps.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from collm.environments.base import Tasks
from collm.environments.games import bridge_expert as scripted
from collm.environments.games.bridge_maps import SPACING, River, random_rivers
from collm.environments.games.bridge_prompts import observation
from collm.environments.games.bridge_rules import (
    CONNECTED,
    FAKES,
    GAP,
    PLANKS,
    Rules,
    State,
    begin,
    resolve,
    touching,
)
from collm.environments.games.grid_game import Communication, GridGame, Prompt, UpTo50, UpTo1000
from collm.environments.games.svg import label, square
from collm.environments.pay import Density
from collm.errors import ConfigurationError
from collm.runtime.checks import NotNegative, Range, Seed, checked


class BridgeBuild(GridGame):
    """Two agents probe pillars, tell each other what they found, and lay planks from one bank to the other.

    The reward of a turn is 5 times the share of the gap that was closed (the least number of further planks, at first
    that of the sound lane), 2 for the crossing, -12 for each fake that planks newly touch, as a share of all fakes, -5
    for each plank as a share of all water, and minus the costs of probes. Fakes bear nothing. The episode ends with
    the crossing.

    Args:
        width: Number of columns.
        height: Number of rows, both banks included.
        lanes: Number of lanes, one of which is sound.
        pillars: Number of pillars in a lane, half of them in each half of the river; even.
        spare: Planks beyond those that the sound lane needs; 0 or 1, as 2 more would get around a fake.
        vision: How far agents see in each direction from the cells they walk over.
        steps: Largest number of steps in a turn, straight or diagonal.
        max_probes: Number of pillars that an agent can probe in a turn.
        probe_cost: What one probe costs.
        horizon: Largest number of turns of an episode.
        communication: "none", "facts" (results of an agent's own probes), or "text" of any kind.
        message_limit: Number of facts of an agent in a turn; further ones are rejected.
        max_characters: Length of a text; what is longer is cut.
        reward: "dense": every turn has its reward; "sparse": their sum, at the end.
        num_maps: Number of maps to train on.
        num_eval: Number of held-out maps, all different from those to train on.
        seed: Seed of the maps.
        prompt: "full" explains the game, for instruction-tuned models; "compact" shows only what differs between turns,
            for small models.
    """

    agent_ids = ("builder_1", "builder_2")
    rules: Rules
    score, counted = "gap", ("probes", "planks", "fakes", "messages", "useful_messages")

    @checked
    def __init__(
        self,
        width: Annotated[int, Range(SPACING + 1, 50, whole=True)] = 11,
        height: Annotated[int, Range(5, 50, whole=True)] = 11,
        lanes: Annotated[int, Range(2, 20, whole=True)] = 3,
        pillars: Annotated[int, Range(2, 40, whole=True)] = 4,
        spare: Annotated[int, Range(0, 1, whole=True)] = 1,
        vision: UpTo50 = 5,
        steps: UpTo50 = 4,
        max_probes: Annotated[int, Range(0, 50, whole=True)] = 3,
        probe_cost: NotNegative = 0.05,
        horizon: UpTo1000 = 4,
        communication: Communication = "facts",
        message_limit: UpTo50 = 3,
        max_characters: UpTo1000 = 80,
        reward: Density = "dense",
        num_maps: Tasks = 200,
        num_eval: Tasks = 16,
        seed: Seed = 0,
        prompt: Prompt = "full",
    ) -> None:
        if pillars % 2:
            raise ConfigurationError(f"pillars is {pillars}; it must be even, half of them in each half of the river.")
        planks = height - 2 - pillars + spare
        self.rules = Rules(
            agent_ids=self.agent_ids, vision=vision, steps=steps, max_probes=max_probes, probe_cost=float(probe_cost),
            planks=planks, horizon=horizon, communication=communication, message_limit=message_limit,
            max_characters=max_characters,
        )  # fmt: skip
        self.horizon, self.reward, self.prompt = horizon, reward, prompt
        rivers = random_rivers(num_maps + num_eval, width, height, lanes, pillars, seed)
        self._set_maps("river", rivers[:-num_eval], rivers[-num_eval:])
        self._check_rivers(rivers)
        turns = horizon if reward == "sparse" else 1
        water = min(river.water for river in rivers)
        self.max_reward = GAP + CONNECTED
        self.min_reward = -FAKES - PLANKS * planks / water - probe_cost * max_probes * 2 * turns

    def _check_rivers(self, rivers: Sequence[River]) -> None:
        """Refuse maps that the scripted team cannot solve although it tells what it finds out."""
        rules = Rules(**{**vars(self.rules), "communication": "facts"})
        if rules.max_probes and any(scripted.solved_in(rules, river) is None for river in rivers):
            raise ConfigurationError(
                f"{rules.horizon} turns are too few even for the scripted team that tells what it finds out; raise "
                "horizon, vision, max_probes or message_limit, or lower lanes or pillars."
            )

    def begin(self, data: Mapping[str, Any]) -> State:
        """The agents stand on the two banks."""
        return begin(self.rules, River.of(data))

    def resolve(self, state: State, texts: Sequence[str]) -> tuple[State, dict[str, float], dict[str, Any]]:
        """Walk, probe, deliver messages, lay planks; see `bridge_rules`."""
        return resolve(self.rules, state, texts)

    def outcome(self, state: State) -> tuple[bool, dict[str, Any]]:
        """Whether there is a crossing, and the gap."""
        gap = state.river.gap(state.planks)
        return not gap, {"gap": gap}

    def observation(self, state: State, index: int, before: State | None) -> str:
        """See `bridge_prompts`."""
        return observation(self.rules, state, index, before, self.prompt)

    def state_features(self, state: State) -> dict[str, float]:
        """The gap, planks left, touched fakes; of each agent, the pillars that it knows to be sound and to be fake."""
        gap = state.river.gap(state.planks)
        features = {
            "gap_share": gap / state.first_gap,
            "connected": float(not gap),
            "planks_left": float(self.rules.planks - len(state.planks)),
            "fakes_touched": float(touching(state.river, state.planks)),
        }
        for agent_id, builder in zip(self.agent_ids, state.agents, strict=True):
            features[f"known_sound/{agent_id}"] = float(sum(builder.known.values()))
            features[f"known_fake/{agent_id}"] = float(len(builder.known) - sum(builder.known.values()))
        both = [set(cell for cell, sound in builder.known.items() if not sound) for builder in state.agents]
        return {**features, "fakes_known_to_both": float(len(both[0] & both[1]))}

    def state_text(self, state: State) -> str:
        """The gap, the planks left, all pillars, and which of them each agent knows."""
        left = self.rules.planks - len(state.planks)
        lines = [f"gap {state.river.gap(state.planks)} planks {left} touched {touching(state.river, state.planks)}"]
        for cell, sound in sorted(state.river.pillars.items()):
            knows = [str(index + 1) for index, builder in enumerate(state.agents) if cell in builder.known]
            lines.append(" ".join(["pillar", *map(str, cell), "sound" if sound else "fake", "know", *knows]))
        return "\n".join(lines)

    def progress(self, state: State) -> float:
        """Share of the gap that is closed."""
        return 1 - state.river.gap(state.planks) / state.first_gap

    def render_turn(self, state: State) -> str | None:
        """The river with pillars (fakes crossed), planks, what each agent has seen and knows, and what it sent."""
        river = state.river
        banks = [square((x, y), "#a9c48f") for x in range(river.width) for y in (0, river.height - 1)]
        things = [square(cell, "#b58f56") for cell in sorted(state.planks)]
        for cell, sound in sorted(river.pillars.items()):
            knows = "".join(str(index + 1) for index, builder in enumerate(state.agents) if cell in builder.known)
            things += [square(cell, "#8b8b8b" if sound else "#c98a8a"), label(cell, ("" if sound else "x") + knows)]
        caption = f"planks {len(state.planks)} of {self.rules.planks}"
        return self.draw(state, (river.width, river.height), banks, things, 0.12, caption)

    def demonstrate(self, state: State, rng: random.Random) -> dict[str, str]:
        """What noisy demonstrators do: they know the commands, but probe, tell and build at random."""
        return scripted.demonstration(self.rules, state, rng)
