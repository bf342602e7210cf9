"""Policies that are tables of logits, and a two-turn game small enough to enumerate: what estimators are tested on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from uuid import uuid4

import torch
from torch import Tensor

from collm.environments.base import Environment, EpisodeFailure, Step
from collm.samplers.base import Episode, act_all
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn

NUM_ACTIONS = 2
AGENTS = ("first", "second")
# Histories of an agent as tokens: what it saw, what it did, what it saw then.
HISTORIES = [(0,), *((0, action, seen) for action in range(NUM_ACTIONS) for seen in range(2))]


@dataclass
class State:
    """Where a game stands; mutable, so that a sampler that shares states between branches is found out."""

    turn: int = 0
    previous: int = 0


class TwoTurns(Environment):
    """Two turns of two actions each. The first agent is told whether both did the same, the second one nothing.

    Args:
        first: Reward of the first turn by joint action, [2, 2].
        second: Reward of the second turn by what was done in the first (numbered 0 to 3) and then, [4, 2, 2].
        stop_at: Joint action (0 to 3) of the first turn that ends the episode.
        fail_at: Joint action of the first turn that the environment fails on.
        noise: Pay, in the last turn, a standard normal number instead, drawn anew for every episode.
    """

    agent_ids = AGENTS
    horizon = 2
    min_reward, max_reward = -100.0, 100.0

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        stop_at: int | None = None,
        fail_at: int | None = None,
        noise: random.Random | None = None,
    ):
        self.first, self.second = first, second
        self.stop_at, self.fail_at, self.noise = stop_at, fail_at, noise

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split} {index}", {}) for index in range(4)]

    def reset(self, task: Task, rng: random.Random) -> tuple[State, dict[str, str]]:
        return State(), dict.fromkeys(AGENTS, "0")

    def step(self, state: State, joint_action: Mapping[str, str]) -> Step:
        own, other = (int(joint_action[agent_id]) for agent_id in AGENTS)
        if state.turn == 0:
            reward = float(self.first[own, other])
        else:
            reward = self.noise.gauss(0, 1) if self.noise else float(self.second[state.previous, own, other])
        state.turn += 1
        state.previous = NUM_ACTIONS * own + other
        if state.turn == 1 and state.previous == self.fail_at:
            raise EpisodeFailure("it broke")
        shown = {AGENTS[0]: str(int(own == other)), AGENTS[1]: "0"}
        return Step(state, shown, reward, terminated=state.turn == 1 and state.previous == self.stop_at)


class TabularPolicy:
    """pi(a | h) by a table of logits [histories, actions]; counts what it is asked.

    Args:
        logits: Logits by row of `HISTORIES`.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits
        self.num_batches = 0
        self.num_rows = 0

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        tokens = [int(observations[0])]
        for action, observation in zip(actions, observations[1:], strict=True):
            tokens += [*action.token_ids, int(observation)]
        return tokens

    def sample(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, greedy: bool) -> list[Action]:
        self.num_batches += 1
        self.num_rows += len(prompts)
        log_probs = self.logits.detach()[[HISTORIES.index(tuple(prompt)) for prompt in prompts]].log_softmax(-1)
        chosen = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1).tolist()
        return [
            Action(str(token), list(prompt), [token], [float(row[token])])
            for prompt, token, row in zip(prompts, chosen, log_probs, strict=True)
        ]

    def encode_action(self, text: str, prompt: Sequence[int]) -> Action:
        return Action(text, list(prompt), [int(text)], [0.0])


def every_trajectory(game: TwoTurns, policies: Mapping[str, TabularPolicy]) -> list[tuple[Trajectory, list[str]]]:
    """All episodes of a game without chance, one for each sequence of joint actions that can be played."""
    joint = ["".join(map(str, choice)) for choice in product(range(NUM_ACTIONS), repeat=len(AGENTS))]
    found: dict[str, tuple[Trajectory, list[str]]] = {}
    for plan in product(joint, repeat=game.horizon):
        episode = Episode(game, game.tasks("train")[0], 0, 0)
        played: list[str] = []
        while not episode.done:
            choice = plan[len(played)]
            prompts = {agent_id: policies[agent_id].prompt(*episode.history(agent_id)) for agent_id in AGENTS}
            actions = {
                agent_id: policies[agent_id].encode_action(choice[place], prompts[agent_id])
                for place, agent_id in enumerate(AGENTS)
            }
            act_all([episode], [actions])
            played.append(choice)
        found[" ".join(played)] = (episode.trajectory, played)
    return list(found.values())


def log_probs_of(trajectories: Iterable[Trajectory], agent_id: str, logits: Tensor, width: int) -> Tensor:
    """log pi(a_t | h_t) of one agent at every turn, 0 where none was played, [B, T]; `logits` [..., histories, A]."""
    table = logits.log_softmax(-1)
    rows = []
    for row, trajectory in enumerate(trajectories):
        own = table[row] if logits.dim() == 3 else table
        actions = [turn.actions[agent_id] for turn in trajectory.turns]
        entries = [own[HISTORIES.index(tuple(action.prompt_ids)), action.token_ids[0]] for action in actions]
        rows.append(torch.stack([*entries, *[own.new_zeros(())] * (width - len(entries))]))
    return torch.stack(rows)


def copies(trajectory: Trajectory, count: int) -> Iterator[Trajectory]:
    """Equal trajectories that share nothing a sampler would not share between independent episodes."""
    for _ in range(count):
        turns = [
            Turn(
                turn.observations,
                {name: replace(action, uid=uuid4().hex) for name, action in turn.actions.items()},
                turn.reward,
            )
            for turn in trajectory.turns
        ]
        yield replace(trajectory, turns=turns)


def scored_mask(batch: RolloutBatch, agent_id: str) -> Tensor:
    """True where `action_sequences` scores an action of the agent, [B, T]."""
    from collm.packing import action_sequences

    mask = torch.zeros_like(batch.turn_mask)
    for sequence in action_sequences(batch.trajectories, agent_id):
        for turn in {turn for turn in sequence.turns if turn >= 0}:
            mask[sequence.row, turn] = True
    return mask
