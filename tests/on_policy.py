"""What engines sample against what updates compute for the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.models.policy import Policy
from collm.packing import SequenceBatch, action_sequences, pad_sequences
from collm.trajectory import Action, Task, Trajectory, Turn

CUTS = (
    {"top_p": 0.6},
    {"top_p": 0.9, "temperature": 0.7},
    {"top_k": 5},
    {"min_new_tokens": 3},
    {"top_p": 0.9, "top_k": 40, "min_new_tokens": 2},
)
"""Settings that cut the distribution."""


def batch_of(agent_id: str, actions: Sequence[Action]) -> SequenceBatch:
    """The actions as the update sees them, one episode of one turn each."""
    trajectories = [
        Trajectory(Task(str(row), {}), row, 1, 1.0, [Turn({agent_id: ""}, {agent_id: action}, 0.0)])
        for row, action in enumerate(actions)
    ]
    return pad_sequences(action_sequences(trajectories, agent_id), 0, "cpu")


def log_ratios(policy: Policy, actions: Sequence[Action]) -> torch.Tensor:
    """log pi / mu of every sampled token: what trains against what sampled, with the weights as they are."""
    batch = batch_of(policy.agent_id, actions)
    with torch.no_grad():
        log_probs, _ = policy.log_probs(batch)
    return (log_probs - batch.old_log_probs)[batch.action_mask]
