"""Decentralized execution that also stores the exact value of every history, for the oracle critic.

The environment knows the correct responses and computes the values of histories from the probabilities of these
responses under the current policies. No agent observes any of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from collm.environments.base import Environment
from collm.packing import TokenSequence, micro_batches
from collm.runtime.checks import COUNT, check_number
from collm.samplers.base import Actors
from collm.samplers.parallel import Parallel
from collm.trajectory import Task, Trajectory


class Oracle(Parallel):
    """All agents act simultaneously, and every turn stores the value of its history under the current policies.

    It needs an environment that can compute values, such as `Relay`, and policies that return log-probabilities. It
    serves `OracleCritic`, an upper bound for learned critics.

    Args:
        tokens_per_micro_batch: Largest number of tokens in one forward pass.
    """

    def __init__(self, tokens_per_micro_batch: int = 16384):
        self.tokens_per_micro_batch = check_number("Oracle.tokens_per_micro_batch", tokens_per_micro_batch, COUNT)

    def rollout(
        self,
        environment: Environment,
        tasks: Sequence[Task],
        actors: Actors,
        seed: int,
        device: torch.device | str,
        *args: Any,
        **kwargs: Any,
    ) -> list[Trajectory]:
        """Play episodes, then compute the value of every history; arguments as in `Sampler.rollout`."""
        trajectories = super().rollout(environment, tasks, actors, seed, device, *args, **kwargs)
        answers = [environment.right_answers(trajectory) for trajectory in trajectories]
        probabilities = [[dict.fromkeys(actors.policies, 0.0) for _ in trajectory.turns] for trajectory in trajectories]
        for agent_id in actors.policies:
            of_agent = self.answer_probabilities(trajectories, answers, agent_id, actors, device)
            for (row, turn), probability in of_agent.items():
                probabilities[row][turn][agent_id] = probability
        for trajectory, values in zip(trajectories, environment.values(trajectories, probabilities), strict=True):
            for played, turn_values in zip(trajectory.turns, values, strict=True):
                played.values = {name: float(value) for name, value in turn_values.items()}
        return trajectories

    @torch.no_grad()
    def answer_probabilities(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Sequence[Mapping[str, str]]],
        agent_id: str,
        actors: Actors,
        device: torch.device | str,
    ) -> dict[tuple[int, int], float]:
        """Probability of one agent's correct answer in each trajectory and turn, given its own history."""
        keys: list[tuple[int, int]] = []
        sequences = []
        for row, trajectory in enumerate(trajectories):
            for turn, played in enumerate(trajectory.turns):
                prompt = list(played.actions[agent_id].prompt_ids)
                ids = list(actors.encode_action(agent_id, answers[row][turn][agent_id], prompt).token_ids)
                sequences.append(TokenSequence(len(keys), [*prompt, *ids], [-1] * len(prompt) + [0] * len(ids)))
                keys.append((row, turn))
        probabilities = torch.zeros(len(keys), device=device)
        for batch in micro_batches(sequences, self.tokens_per_micro_batch, 0, device):
            log_probs, _ = actors.policies[agent_id].log_probs(batch)
            probabilities[batch.rows] = log_probs.sum(1).exp()
        return dict(zip(keys, probabilities.tolist(), strict=True))
