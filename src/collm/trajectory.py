"""What happened in an episode, and how it becomes tensors.

A `Trajectory` is text and token ids: it is what environments and samplers make, what transcripts are written
from, and what a `RolloutBatch` carries to the algorithm. `packing` turns it into rows of tokens for updates.

Dimension letters, used everywhere in the project:

    B trajectories, N agents, T turns, L tokens, V vocabulary, R rows (token sequences) of one micro-batch

Masks are True where an element counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One problem that agents can be given.

    Args:
        task_id: Stable name, unique within the environment.
        data: What the environment needs to know about it; plain data only.
    """

    task_id: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Action:
    """A whole response of one agent, the macro-action of the Dec-POMDP.

    Args:
        text: The response as the environment reads it.
        prompt_ids: Tokens the response was sampled after: the agent's own history h_i as its model reads it.
        token_ids: Sampled tokens, the end-of-sequence token included when it was sampled.
        log_probs: Log-probability of each sampled token under the behaviour policy.
        truncated: True when the response was cut at the token limit instead of ended by the agent.
        seconds: How long it took to write; 0 where it was not timed on its own.
        policy_version: Number of updates behind the weights that wrote it; None where no policy did (demonstrations).
        uid: Identity. Trajectories that share an action (paths of a rollout tree, crossed joint actions) hold the same
            uid, also after they were copied or pickled.
    """

    text: str
    prompt_ids: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    log_probs: Sequence[float] = ()
    truncated: bool = False
    seconds: float = 0.0
    policy_version: int | None = None
    uid: str = field(default_factory=lambda: uuid4().hex, compare=False, repr=False)


@dataclass(frozen=True)
class Message:
    """Something one agent was shown and wrote within a turn.

    Args:
        agent_id: Who wrote it.
        observation: What the agent was shown for it.
        action: What it wrote.
        round: Messages of one round are written at the same time, those of the next one after them.
    """

    agent_id: str
    observation: str
    action: Action
    round: int = 0

    def record(self) -> dict[str, Any]:
        """The message as plain data."""
        return {"agent_id": self.agent_id, "observation": self.observation, "text": self.action.text}


@dataclass(frozen=True)
class Branch:
    """Where a joint action stands in a rollout tree.

    Args:
        node: Number of the joint action, unique in its rollout; paths that begin alike share it.
        parent: Number of the joint action before it, which its siblings share; below 0 at the root of a task.
    """

    node: int
    parent: int


@dataclass
class Turn:
    """One joint action and its reward; `branch` is None outside rollout trees.

    `messages` is empty where every agent answered its observation at once, as `observations` and `actions` say it all.
    Where agents talk before they act, it holds all that they were shown and wrote, in order; the last message of each
    agent is its action. `values` is what the history before the turn is worth under the current policies, `team` the
    joint history and an agent's id its own; empty where nobody knows. `features`, `state_text` and `progress` (the
    share of the best score that is reached) describe the true state before the turn, for critics alone; they are empty
    or None where the environment does not.
    """

    observations: dict[str, str]
    actions: dict[str, Action]
    reward: float
    terms: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    branch: Branch | None = None
    messages: list[Message] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    features: dict[str, float] = field(default_factory=dict)
    state_text: str = ""
    progress: float | None = None

    def written_by(self, agent_id: str) -> list[Message]:
        """What one agent was shown and wrote, in order; the last one is its action."""
        own = [message for message in self.messages if message.agent_id == agent_id]
        return own or [Message(agent_id, self.observations[agent_id], self.actions[agent_id])]


@dataclass
class Trajectory:
    """The turns of one episode, or one path of a rollout tree from its root to a leaf.

    Args:
        task: What was played.
        group: Trajectories of one rollout that share a task share this number.
        horizon: Largest number of turns the environment allows.
        max_reward: Largest reward a turn can bring; the scale of the progress shown to critics.
        turns: What happened.
        metrics: Numbers the environment has about the finished episode.
        failures: Every `EpisodeFailure` that the environment reported, those that a retry made good included, as its
            cause and its message.
        error: Why the episode failed for good; such an episode keeps the turns it has.
        weight: How likely a random descent of its rollout tree takes this path; 1 for an episode of its own.
    """

    task: Task
    group: int
    horizon: int
    max_reward: float
    turns: list[Turn] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None
    weight: float = 1.0

    @property
    def total_reward(self) -> float:
        """Undiscounted return of the episode."""
        return sum(turn.reward for turn in self.turns)

    def record(self) -> dict[str, Any]:
        """The trajectory as plain data, one line of a transcript file."""
        return {
            "task_id": self.task.task_id,
            "return": self.total_reward,
            "metrics": self.metrics,
            "error": self.error,
            "failures": [{"cause": cause, "message": message} for cause, message in self.failures],
            "turns": [
                {
                    "observations": turn.observations,
                    "actions": {agent_id: action.text for agent_id, action in turn.actions.items()},
                    "truncated": [agent_id for agent_id, action in turn.actions.items() if action.truncated],
                    "reward": turn.reward,
                    "terms": turn.terms,
                    "info": turn.info,
                }
                | ({"messages": [message.record() for message in turn.messages]} if turn.messages else {})
                | {
                    name: told
                    for name in ("features", "state_text", "progress")
                    if (told := getattr(turn, name)) not in ({}, "", None)
                }
                for turn in self.turns
            ],
        }


@dataclass(frozen=True)
class RolloutTree:
    """How the trajectories of a batch hang together where they are paths of rollout trees.

    Args:
        nodes: Joint action at each turn of each path, numbered from 0 to M - 1, 0 where no turn was played, [B, T].
        siblings: Group of each joint action: those drawn after the same history, [M].
        weights: How much each path counts, with mean 1, [B].
    """

    nodes: Tensor
    siblings: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> RolloutTree:
        """The tree with its tensors on `device`."""
        return RolloutTree(self.nodes.to(device), self.siblings.to(device), self.weights.to(device))


@dataclass
class RolloutBatch:
    """Finished, on-policy trajectories and what every algorithm reads of them.

    Args:
        trajectories: The episodes, B of them.
        rewards: Team reward of each turn, 0 where no turn was played, [B, T].
        turn_mask: True at turns that were played, [B, T].
        groups: Group of each trajectory, [B].
        seconds: What it took to play them.
        tree: How they hang together, None where every trajectory is an episode of its own.
        left_out: Episodes that failed and are not among `trajectories`: nothing is learned from them.
        replaced_joint_samples: Joint actions of groups that were played and replaced by others.
    """

    trajectories: list[Trajectory]
    rewards: Tensor
    turn_mask: Tensor
    groups: Tensor
    seconds: float = 0.0
    tree: RolloutTree | None = None
    left_out: list[Trajectory] = field(default_factory=list)
    replaced_joint_samples: int = 0

    @property
    def joint_samples(self) -> int:
        """Joint actions that were paid for this batch, replaced groups included."""
        kept = int(self.turn_mask.sum()) if self.tree is None else len(self.tree.siblings)
        return kept + self.replaced_joint_samples

    def to(self, device: torch.device) -> RolloutBatch:
        """The batch with its tensors on `device`."""
        return RolloutBatch(
            self.trajectories,
            self.rewards.to(device),
            self.turn_mask.to(device),
            self.groups.to(device),
            self.seconds,
            None if self.tree is None else self.tree.to(device),
            self.left_out,
            self.replaced_joint_samples,
        )


def without_failed(trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], list[Trajectory]]:
    """Split `trajectories` into those that were finished and those that failed.

    Where paths of a rollout tree failed, the weights of the paths left are worked out anew: a random descent chooses
    evenly among the children that lead on to a path that is left.
    """
    left = [trajectory for trajectory in trajectories if trajectory.error is None]
    failed = [trajectory for trajectory in trajectories if trajectory.error is not None]
    children: dict[int, set[int]] = {}
    for branch in (turn.branch for trajectory in left for turn in trajectory.turns):
        if branch:
            children.setdefault(branch.parent, set()).add(branch.node)
    if failed:
        for trajectory in left:
            chosen = [len(children[turn.branch.parent]) for turn in trajectory.turns if turn.branch]
            trajectory.weight = 1 / math.prod(chosen)
    return left, failed


def collate(
    trajectories: Sequence[Trajectory], seconds: float = 0.0, left_out: Sequence[Trajectory] = ()
) -> RolloutBatch:
    """Put the rewards of `trajectories` side by side; T is the longest of them, at least 1."""
    width = max((len(trajectory.turns) for trajectory in trajectories), default=0) or 1
    rewards = torch.zeros(len(trajectories), width)
    turn_mask = torch.zeros(len(trajectories), width, dtype=torch.bool)
    for row, trajectory in enumerate(trajectories):
        for index, turn in enumerate(trajectory.turns):
            rewards[row, index] = turn.reward
            turn_mask[row, index] = True
    groups = torch.tensor([trajectory.group for trajectory in trajectories], dtype=torch.long)
    return RolloutBatch(
        list(trajectories), rewards, turn_mask, groups, seconds, rollout_tree(trajectories, width), [*left_out]
    )


def rollout_tree(trajectories: Sequence[Trajectory], width: int) -> RolloutTree | None:
    """How `trajectories` hang together, over `width` turns; None if no turn has a `branch`."""
    if not any(turn.branch for trajectory in trajectories for turn in trajectory.turns):
        return None
    # where one turn has a branch, all have
    branches = [[cast(Branch, turn.branch) for turn in trajectory.turns] for trajectory in trajectories]
    distinct = list({branch.node: branch for path in branches for branch in path}.values())
    numbers = {branch.node: index for index, branch in enumerate(distinct)}
    nodes = torch.tensor([[numbers[b.node] for b in path] + [0] * (width - len(path)) for path in branches])
    weights = torch.tensor([trajectory.weight for trajectory in trajectories])
    return RolloutTree(nodes, torch.tensor([branch.parent for branch in distinct]), weights / weights.mean())


def distinct_actions(trajectories: Iterable[Trajectory]) -> list[Action]:
    """All that agents wrote, messages to each other included; what trajectories share counts once."""
    written = (
        message.action
        for trajectory in trajectories
        for turn in trajectory.turns
        for agent_id in turn.actions
        for message in turn.written_by(agent_id)
    )
    return list({action.uid: action for action in written}.values())


def first_non_finite(trajectories: Iterable[Trajectory]) -> Trajectory | None:
    """The first trajectory with a reward that is NaN or infinite, if there is one."""
    for trajectory in trajectories:
        if not all(math.isfinite(turn.reward) for turn in trajectory.turns):
            return trajectory
    return None
