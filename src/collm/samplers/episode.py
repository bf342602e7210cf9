"""Episodes while they are played: what agents have seen and done, and what a joint action comes to."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from collm.environments.base import Environment, EpisodeFailure, Step
from collm.environments.contract import begun, check_observations, described, drawn, stepped
from collm.runtime.profiler import meter
from collm.trajectory import Action, Message, Task, Trajectory, Turn


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
        self.trajectory = Trajectory(task, group, environment.horizon, environment.max_reward, seed=seed)
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
        try:
            self.begin()
            for turn, expected in zip(self.trajectory.turns, shown[1:], strict=True):
                texts = {name: action.text for name, action in turn.actions.items()}
                step = self.environment.step(self.state, texts)
                self.state = step.state
                if step.observations != expected:
                    message = "a fresh episode did not repeat what agents had been shown"
                    raise EpisodeFailure(message, cause="repetition")
        finally:
            self.observations = shown[-1]  # also where it failed, as the next try compares with it

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
    complete = []
    for episode, joint_action in zip(episodes, joint_actions, strict=True):
        if failure := absence(episode, joint_action):
            episode.receive(joint_action, failure)
        else:
            complete.append((episode, joint_action))
    if not complete:
        return
    episodes, joint_actions = [episode for episode, _ in complete], [joint_action for _, joint_action in complete]
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
