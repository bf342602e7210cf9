"""How joint actions are formed: which agent is asked what, and in which order.

Samplers see the agents through the protocol `Actors` and environments through their base class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from collm.environments.base import Environment
from collm.runtime.seeding import child_generator
from collm.samplers.episode import Episode, act_all
from collm.samplers.free import play_free
from collm.trajectory import Action, Task, Trajectory


class Actors(Protocol):
    """The agents as samplers see them, whatever generates their responses."""

    policies: Mapping[str, Any]
    """Policies by agent id, in the order of the environment's agents."""

    @property
    def answers_at_once(self) -> int:
        """How many responses may be asked for at once from threads of their own; 0 if agents are asked in batches."""

    def prompt(self, agent_id: str, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the history o_0, a_0, ..., o_t of one agent."""

    def sample(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt of each agent, by agent id."""

    def encode_action(self, agent_id: str, text: str, prompt: Sequence[int]) -> Action:
        """A text that was not generated as an action of one agent."""


class Sampler(ABC):
    """Plays episodes side by side, turn by turn."""

    independent = True
    """Whether every trajectory is an episode of its own; False where those of a task begin as one and share turns."""
    counterfactual = False
    """Whether several responses of one agent are played beside the same actions of the others, as C3 needs them."""
    scripted = False
    """Whether actions come from scripts as well, which no policy gradient may learn from."""
    runs_free = True
    """Whether `joint_actions` may be asked for one episode at a time, from several threads; see `samplers.free`."""
    asks_once = True
    """Whether every agent generates once in a turn; otherwise key/value states are kept within a turn too."""
    pictures = False
    """Whether episodes keep the environment's picture of every turn; set for evaluations that are shown."""

    def check(  # noqa: B027 (most samplers refuse nothing)
        self, environment: Environment, num_tasks: int, num_generations: int
    ) -> None:
        """Refuse a rollout of `num_generations` episodes of `num_tasks` tasks that cannot be played.

        It is asked before any weights load.
        """

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
        """Play `num_generations` episodes of every task.

        Args:
            environment: The game.
            tasks: The tasks; each is one group.
            actors: The agents.
            seed: Seed of the environments and of sampling.
            device: Device of the random generator.
            num_generations: Episodes of each task; they share the environment's seed and differ in actions.
            greedy: Take the most likely tokens.
            on_turn: Called with the turn that begins and the number of episodes (of a tree: paths) that play it.
            retries: How often a turn in which the environment failed is tried again.

        Returns:
            The trajectories, those of one task next to each other.
        """
        generator = torch.Generator(device).manual_seed(seed)
        self.check(environment, len(tasks), num_generations)
        episodes = [
            Episode(environment, task, group, seed * 1_000_003 + group, retries, self.pictures)
            for group, task in enumerate(tasks)
            for _ in range(num_generations if self.independent else 1)
        ]
        if self.independent and self.runs_free and actors.answers_at_once:
            own = {episode: child_generator(generator, generator.device) for episode in episodes}
            play_free(
                episodes,
                lambda episode: self.joint_actions([episode], actors, own[episode], greedy)[0],
                actors.answers_at_once,
                on_turn,
            )
            return [episode.trajectory for episode in episodes]
        for turn in range(environment.horizon):
            active = [episode for episode in episodes if not episode.done]
            if not active:
                break
            if on_turn is not None:
                on_turn(turn, self.num_joint_actions(episodes, num_generations))
            episodes = self.play_turn(episodes, actors, generator, num_generations, greedy)
        return [episode.trajectory for episode in episodes]

    def most_at_once(self, environment: Environment, num_generations: int) -> int:
        """Largest number of responses of one agent that are generated at once for one task."""
        return num_generations

    def num_joint_actions(self, episodes: Sequence[Episode], num_generations: int) -> int:
        """How many joint actions the next turn of `episodes` plays."""
        return sum(not episode.done for episode in episodes)

    def play_turn(
        self, episodes: list[Episode], actors: Actors, generator: torch.Generator, num_generations: int, greedy: bool
    ) -> list[Episode]:
        """The episodes after the next turn of those that are not done."""
        active = [episode for episode in episodes if not episode.done]
        act_all(active, self.joint_actions(active, actors, generator, greedy))
        return episodes

    @abstractmethod
    def joint_actions(
        self,
        episodes: Sequence[Episode],
        actors: Actors,
        generator: torch.Generator,
        greedy: bool,
    ) -> list[dict[str, Action]]:
        """One joint action for every episode, batched over episodes."""
