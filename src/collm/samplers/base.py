"""How joint actions are formed: which agent is asked what, and in which order.

Samplers see the agents through the protocol `Actors` and environments through their base class.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from collm.environments.base import Environment, EpisodeFailure, Step
from collm.environments.contract import begun, check_observations, described, drawn, stepped
from collm.runtime.profiler import meter
from collm.trajectory import Action, Message, Task, Trajectory, Turn


class Actors(Protocol):
    """The agents as samplers see them, whatever generates their responses."""

    policies: Mapping[str, Any]
    """Policies by agent id, in the order of the environment's agents."""

    def prompt(self, agent_id: str, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        """Tokens of the history o_0, a_0, ..., o_t of one agent."""
        ...

    def sample(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt of each agent, by agent id."""
        ...

    def encode_action(self, agent_id: str, text: str, prompt: Sequence[int]) -> Action:
        """A text that was not generated as an action of one agent."""
        ...


class Episode:
    """An episode being played: the state of the environment, and what each agent has observed and done.

    Args:
        environment: The game.
        task: The task.
        group: Episodes of one task share this number.
        seed: Seed of the environment.
        retries: How often a failed turn is tried again, each time in a fresh episode that was brought to that turn.
        pictures: Keep the environment's picture of every turn.
    """

    def __init__(
        self, environment: Environment, task: Task, group: int, seed: int, retries: int = 0, pictures: bool = False
    ):
        self.environment = environment
        self.pictures = pictures
        self.seed = seed
        self.retries = retries
        self.trajectory = Trajectory(task, group, environment.horizon, environment.max_reward)
        self.messages: list[Message] = []  # of the turn that is being played
        self.done = False
        self.state: Any = None
        self.observations: dict[str, str] = {}
        self.features: dict[str, float] = {}
        self.state_text = ""
        self.progress: float | None = None
        for _ in range(1 + retries):
            try:
                self.begin()
                self.describe()
                break
            except EpisodeFailure as failure:
                self.trajectory.failures.append((failure.cause, str(failure)))
        else:
            self.fail()

    def begin(self) -> None:
        """Reset the environment, with the same seed each time.

        Raises:
            EpisodeFailure: The environment could not begin.
        """
        self.rng = random.Random(self.seed)
        with meter.phase("environment"):
            self.state, self.observations = begun(self.environment, self.trajectory.task, self.rng)

    def begin_again(self) -> None:
        """Reset the environment and repeat the turns played so far.

        Raises:
            EpisodeFailure: It failed once more, or the agents would have been shown something else.
        """
        shown = [*(turn.observations for turn in self.trajectory.turns), self.observations]
        self.begin()
        for turn, expected in zip(self.trajectory.turns, shown[1:], strict=True):
            texts = {name: action.text for name, action in turn.actions.items()}
            step = self.environment.step(self.state, texts)
            self.state, self.observations = step.state, step.observations
            if self.observations != expected:
                raise EpisodeFailure("a fresh episode did not repeat what agents had been shown", cause="repetition")
        self.observations = shown[-1]

    def describe(self) -> None:
        """Note the state before a turn, for critics alone; steps may change the state itself."""
        with meter.phase("environment"):
            told = described(self.environment, self.trajectory.task, self.state)
            self.features, self.state_text, self.progress = told

    def fail(self) -> None:
        """End the episode for its last failure."""
        self.trajectory.error = self.trajectory.failures[-1][1]
        self.done = True

    def history(self, agent_id: str, shown: str | None = None) -> tuple[list[str], list[Action]]:
        """Observations o_0 ... o_t and actions a_0 ... a_{t-1} of one agent.

        Args:
            agent_id: Whose history.
            shown: What the agent is shown now, in place of the environment's observation.
        """
        own = [message for turn in self.trajectory.turns for message in turn.written_by(agent_id)]
        own += [message for message in self.messages if message.agent_id == agent_id]
        shown = self.observations[agent_id] if shown is None else shown
        return [*(message.observation for message in own), shown], [message.action for message in own]

    def act(self, joint_action: Mapping[str, Action]) -> None:
        """Apply one response per agent."""
        act_all([self], [joint_action])

    def receive(self, joint_action: Mapping[str, Action], step: Step | EpisodeFailure) -> None:
        """Record the outcome of `joint_action`."""
        if isinstance(step, EpisodeFailure):
            self.trajectory.failures.append((step.cause, str(step)))
            self.fail()
            return
        self.trajectory.turns.append(
            Turn(
                self.observations,
                dict(joint_action),
                float(step.reward),
                step.terms,
                step.info,
                messages=self.messages,
                features=self.features,
                state_text=self.state_text,
                progress=self.progress,
                picture=drawn(self.environment, step.state) if self.pictures else "",
            )
        )
        self.messages = []
        self.state, self.observations = step.state, step.observations
        self.done = step.terminated or len(self.trajectory.turns) == self.environment.horizon
        if not self.done:
            check_observations(self.environment, self.observations)
            self.describe()


def act_all(episodes: Sequence[Episode], joint_actions: Sequence[Mapping[str, Action]]) -> None:
    """Apply one joint action to each of several episodes of one environment, all at once.

    An episode ends as failed where an agent did not answer and its policy does not go on without it. Where the
    environment fails, the same joint action is applied again in a fresh episode, as often as episodes may retry: an
    outage says nothing about what the agents wrote.
    """
    whole = []
    for episode, joint_action in zip(episodes, joint_actions, strict=True):
        if failure := absence(episode, joint_action):
            episode.receive(joint_action, failure)
        else:
            whole.append((episode, joint_action))
    if not whole:
        return
    episodes, joint_actions = [episode for episode, _ in whole], [joint_action for _, joint_action in whole]
    texts = [{name: action.text for name, action in joint_action.items()} for joint_action in joint_actions]
    with meter.phase("environment"):
        environment = episodes[0].environment
        tasks, states = [e.trajectory.task for e in episodes], [e.state for e in episodes]
        outcomes = stepped(environment, tasks, states, texts)
        for attempt in range(max(episode.retries for episode in episodes)):
            ready = []
            for index, (episode, outcome) in enumerate(zip(episodes, outcomes, strict=True)):
                if isinstance(outcome, EpisodeFailure) and attempt < episode.retries:
                    episode.trajectory.failures.append((outcome.cause, str(outcome)))
                    try:
                        episode.begin_again()
                        ready.append(index)
                    except EpisodeFailure as failure:
                        outcomes[index] = failure
            if ready:
                again = stepped(
                    environment,
                    [tasks[index] for index in ready],
                    [episodes[index].state for index in ready],
                    [texts[index] for index in ready],
                )
                for index, outcome in zip(ready, again, strict=True):
                    outcomes[index] = outcome
    for episode, joint_action, outcome in zip(episodes, joint_actions, outcomes, strict=True):
        episode.receive(joint_action, outcome)


def absence(episode: Episode, joint_action: Mapping[str, Action]) -> EpisodeFailure | None:
    """The failure of an episode in which an agent did not answer, if it ends for that."""
    written = [*((message.agent_id, message.action) for message in episode.messages), *joint_action.items()]
    gone = next(((agent_id, action.absent) for agent_id, action in written if action.fatal), None)
    return EpisodeFailure(f"{gone[0]} did not answer ({gone[1]})", "absent") if gone else None


class Sampler(ABC):
    """Plays episodes side by side, turn by turn."""

    independent = True
    """Whether every trajectory is an episode of its own; False where those of a task begin as one and share turns."""
    counterfactual = False
    """Whether several responses of one agent are played beside the same actions of the others, as C3 needs them."""
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
        for turn in range(environment.horizon):
            active = [episode for episode in episodes if not episode.done]
            if not active:
                break
            if on_turn is not None:
                on_turn(turn, self.num_joint_actions(episodes, num_generations))
            episodes = self.play_turn(episodes, actors, generator, num_generations, greedy)
        return [episode.trajectory for episode in episodes]

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
