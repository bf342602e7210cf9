"""Data of episodes: tasks, actions, turns and trajectories, and batches of them as tensors.

A `Trajectory` holds text and token ids. Samplers create it, transcripts are written from it, and a `RolloutBatch`
carries it to the algorithm. `packing` turns it into token sequences for updates.

Dimension letters, used everywhere in the project:

    B trajectories, N agents, T turns, L tokens, V vocabulary, R rows (token sequences) of one micro-batch

Masks are True where an element counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from collm.rollout_tree import Branch, RolloutTree
from collm.sampling_mask import SamplingMask


@dataclass(frozen=True)
class Task:
    """One problem for the agents to solve.

    Args:
        task_id: Stable name, unique within the environment.
        data: Data of the problem for the environment; plain data only.
    """

    task_id: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Action:
    """A complete response of one agent, the macro-action of the Dec-POMDP.

    Args:
        text: The response as text, as the environment receives it.
        prompt_ids: Prompt tokens: the local history h_i of the agent, in tokens of its model.
        token_ids: Sampled tokens, including the end-of-sequence token if it was sampled.
        log_probs: Log-probability of each sampled token under the behaviour policy.
        truncated: True if the token limit cut the response, False if the agent ended it.
        seconds: Generation time in seconds; 0 if it was not measured for this response.
        policy_version: Number of updates of the weights that sampled it; None if no policy did (demonstrations).
        sampling_mask: The set that each token was drawn from and that its log-probability is normalized over; None for
            the whole vocabulary.
        absent: Why the agent gave no answer of its own in time, such as `late`; empty if it did.
        fatal: True if that ends the episode.
        wire_bytes: Bytes of the requests sent for it and of their answers; None if no server was asked.
        uid: Unique id. Trajectories that share an action (paths of a rollout tree, crossed joint actions) hold the same
            uid, also after copying or pickling.
    """

    text: str
    prompt_ids: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    log_probs: Sequence[float] = ()
    truncated: bool = False
    seconds: float = 0.0
    policy_version: int | None = None
    sampling_mask: SamplingMask | None = field(default=None, compare=False, repr=False)
    absent: str = ""
    fatal: bool = False
    wire_bytes: int | None = None
    uid: str = field(default_factory=lambda: uuid4().hex, compare=False, repr=False)


@dataclass(frozen=True)
class Message:
    """One observation of an agent during a turn, and its response.

    Args:
        agent_id: The agent.
        observation: Text that the agent was shown.
        action: The response of the agent.
        round: Round of the message in its turn. Agents write the messages of one round at the same time; those of the
            next round can depend on them.
    """

    agent_id: str
    observation: str
    action: Action
    round: int = 0


@dataclass
class Turn:
    """One joint action and its reward; `branch` is None outside rollout trees.

    `messages` is empty if every agent responded once, as `observations` and `actions` then hold everything. If agents
    send messages before they act, it holds all observations and responses in order; the last message of an agent is its
    action. `values` holds exact values of the history before the turn under the current policies, under `team` of the
    joint history and under each agent id of the local one; it is empty unless an oracle sampler fills it. `features`,
    `state_text` and `progress` (the share of the best score reached) describe the state before the turn, for critics
    only; they are empty or None if the environment does not define them. `picture` is an SVG image of the state after
    the turn, and `estimates` what critics expected of it, by name; both are kept in evaluations that are shown.
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
    picture: str = ""
    estimates: dict[str, float] = field(default_factory=dict)

    def written_by(self, agent_id: str) -> list[Message]:
        """Messages of one agent in this turn, in order; the last one is its action."""
        messages = [message for message in self.messages if message.agent_id == agent_id]
        return messages or [Message(agent_id, self.observations[agent_id], self.actions[agent_id])]

    def absent(self) -> dict[str, str]:
        """Why agents did not answer in this turn, by agent id; empty if all did."""
        written = [message for agent_id in self.actions for message in self.written_by(agent_id)]
        return {message.agent_id: message.action.absent for message in written if message.action.absent}

    def record(self) -> dict[str, Any]:
        """The turn as plain data."""
        optional = {
            "absent": self.absent(),
            "messages": [
                {"agent_id": message.agent_id, "observation": message.observation, "text": message.action.text}
                for message in self.messages
            ],
            "features": self.features,
            "state_text": self.state_text,
            "progress": self.progress,
            "picture": self.picture,
            "estimates": self.estimates,
        }
        return {
            "observations": self.observations,
            "actions": {agent_id: action.text for agent_id, action in self.actions.items()},
            "truncated": [agent_id for agent_id, action in self.actions.items() if action.truncated],
            "reward": self.reward,
            "terms": self.terms,
            "info": self.info,
            **{name: value for name, value in optional.items() if value not in ([], {}, "", None)},
        }


@dataclass
class Trajectory:
    """The turns of one episode, or one path of a rollout tree from its root to a leaf.

    Args:
        task: The task.
        group: Number of its group: the trajectories of one task in a rollout.
        horizon: Largest number of turns the environment allows.
        max_reward: Largest reward of one turn; critics are shown it beside the last reward.
        turns: The turns, in order.
        metrics: Metrics of the finished episode from the environment.
        failures: Cause and message of every `EpisodeFailure` of the environment, also of those that a retry resolved.
        error: Why the episode failed after all retries, else None; a failed episode keeps the turns before the failure.
        weight: Probability of this path in a uniform random descent of its rollout tree; 1 outside rollout trees.
        seed: Seed of the random generator with which the environment began; None if it is not known.
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
    seed: int | None = None

    @property
    def total_reward(self) -> float:
        """Undiscounted return of the episode."""
        return sum(turn.reward for turn in self.turns)

    def record(self) -> dict[str, Any]:
        """The trajectory as plain data, one line of a transcript file."""
        return {
            "task_id": self.task.task_id,
            **({} if self.seed is None else {"seed": self.seed}),
            "return": self.total_reward,
            "metrics": self.metrics,
            "error": self.error,
            "failures": [{"cause": cause, "message": message} for cause, message in self.failures],
            "turns": [turn.record() for turn in self.turns],
        }


@dataclass
class RolloutBatch:
    """Finished, on-policy trajectories, with their rewards and groups as tensors.

    Args:
        trajectories: The episodes, B of them.
        rewards: Team reward of each turn, 0 at turns not played, [B, T].
        turn_mask: True at played turns, [B, T].
        groups: Group of each trajectory, [B].
        weights: Weight of each trajectory, with mean 1: equal, or that of its path in a rollout tree, [B].
        seconds: Time of the rollout in seconds.
        tree: Structure of the rollout trees; None if every trajectory is an independent episode.
        left_out: Failed episodes, which are not among `trajectories` and not learned from.
        replaced: Episodes of groups that were played and then replaced, which are not learned from.
        numbers: What engines counted while the batch was played, a list of values for each name.
    """

    trajectories: list[Trajectory]
    rewards: Tensor
    turn_mask: Tensor
    groups: Tensor
    weights: Tensor
    seconds: float = 0.0
    tree: RolloutTree | None = None
    left_out: list[Trajectory] = field(default_factory=list)
    replaced: list[Trajectory] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)

    @property
    def joint_samples(self) -> int:
        """Number of joint actions that were rewarded for this batch, those of `left_out` and `replaced` included."""
        turns = [turn for trajectory in self.played for turn in trajectory.turns]
        nodes = {turn.branch.node for turn in turns if turn.branch}
        return len(nodes) + sum(turn.branch is None for turn in turns)

    @property
    def played(self) -> list[Trajectory]:
        """All episodes that were played for this batch, whatever became of them."""
        return [*self.trajectories, *self.left_out, *self.replaced]

    def to(self, device: torch.device) -> RolloutBatch:
        """The batch with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("rewards", "turn_mask", "groups", "weights")}
        return replace(self, **moved, tree=self.tree and self.tree.to(device))


def without_failed(trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], list[Trajectory]]:
    """Split `trajectories` into finished and failed ones.

    If paths of a rollout tree failed, the weights of its finished paths are computed again: the random descent chooses
    uniformly among the children that have a finished path.
    """
    left = [trajectory for trajectory in trajectories if trajectory.error is None]
    failed = [trajectory for trajectory in trajectories if trajectory.error is not None]
    nodes = {turn.branch for trajectory in left for turn in trajectory.turns if turn.branch}
    num_siblings = Counter(branch.parent for branch in nodes)
    for trajectory in left if failed else ():
        trajectory.weight = 1 / math.prod(num_siblings[turn.branch.parent] for turn in trajectory.turns if turn.branch)
    return left, failed


def collate(
    trajectories: Sequence[Trajectory], seconds: float = 0.0, left_out: Sequence[Trajectory] = ()
) -> RolloutBatch:
    """Make a batch of `trajectories`; T is the largest number of turns among them, at least 1."""
    width = max((len(trajectory.turns) for trajectory in trajectories), default=0) or 1
    rewards = torch.zeros(len(trajectories), width)
    turn_mask = torch.zeros(len(trajectories), width, dtype=torch.bool)
    for row, trajectory in enumerate(trajectories):
        for index, turn in enumerate(trajectory.turns):
            rewards[row, index] = turn.reward
            turn_mask[row, index] = True
    groups = torch.tensor([trajectory.group for trajectory in trajectories], dtype=torch.long)
    paths = [[turn.branch for turn in trajectory.turns if turn.branch] for trajectory in trajectories]
    tree = RolloutTree.of(paths, width) if any(paths) else None
    weights = torch.tensor([trajectory.weight for trajectory in trajectories])
    weights = weights / weights.mean()
    return RolloutBatch(list(trajectories), rewards, turn_mask, groups, weights, seconds, tree, [*left_out])


def distinct_actions(trajectories: Iterable[Trajectory]) -> list[Action]:
    """All actions and messages of agents; those that several trajectories share are listed once."""
    written = (
        message.action
        for trajectory in trajectories
        for turn in trajectory.turns
        for agent_id in turn.actions
        for message in turn.written_by(agent_id)
    )
    return list({action.uid: action for action in written}.values())
