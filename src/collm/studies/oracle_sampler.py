"""Decentralized execution, with the value of every history noted beside it: what an oracle critic reads.

The environment says which responses are right and what histories are worth given how likely they are; how likely they
are is asked of the policies as they are now. Nothing of it is shown to any agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from collm.environments.base import Environment
from collm.packing import TokenSequence, micro_batches
from collm.runtime.checks import COUNT, check_number
from collm.samplers.base import Actors
from collm.samplers.parallel import Parallel
from collm.trajectory import Task, Trajectory


class Oracle(Parallel):
    """All agents act at once, and every turn keeps what its history is worth under the current policies.

    It needs an environment that knows, such as `Relay`, and policies whose log-probabilities can be asked for. It is
    for `OracleCritic`, a reference line that no learned critic should be expected to pass.

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
        num_generations: int = 1,
        greedy: bool = False,
        on_turn: Callable[[int, int], None] | None = None,
        retries: int = 0,
    ) -> list[Trajectory]:
        """Play, then value every history; arguments as in `Sampler.rollout`."""
        trajectories = super().rollout(
            environment, tasks, actors, seed, device, num_generations, greedy, on_turn, retries
        )
        answers = [environment.right_answers(trajectory) for trajectory in trajectories]
        chances = [[dict.fromkeys(actors.policies, 0.0) for _ in trajectory.turns] for trajectory in trajectories]
        for agent_id in actors.policies:
            for (row, turn), chance in self.chances(trajectories, answers, agent_id, actors, device).items():
                chances[row][turn][agent_id] = chance
        for trajectory, values in zip(trajectories, environment.values(trajectories, chances), strict=True):
            for turn, worth in zip(trajectory.turns, values, strict=True):
                turn.values = {name: float(value) for name, value in worth.items()}
        return trajectories

    @torch.no_grad()
    def chances(
        self,
        trajectories: Sequence[Trajectory],
        answers: Sequence[Sequence[Mapping[str, str]]],
        agent_id: str,
        actors: Actors,
        device: torch.device | str,
    ) -> dict[tuple[int, int], float]:
        """Probability of the answer of one agent at each trajectory and turn, given its own history."""
        places, sequences = [], []
        for row, trajectory in enumerate(trajectories):
            for turn, played in enumerate(trajectory.turns):
                prompt = list(played.actions[agent_id].prompt_ids)
                ids = list(actors.encode_action(agent_id, answers[row][turn][agent_id], prompt).token_ids)
                sequences.append(TokenSequence(len(places), [*prompt, *ids], [-1] * len(prompt) + [0] * len(ids)))
                places.append((row, turn))
        found = torch.zeros(len(places), device=device)
        for batch in micro_batches(sequences, self.tokens_per_micro_batch, 0, device):
            log_probs, _ = actors.policies[agent_id].log_probs(batch)
            found[batch.rows] = log_probs.sum(1).exp()
        return dict(zip(places, found.tolist(), strict=True))
