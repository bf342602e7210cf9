"""A relay of private signals: a game built to isolate credit assignment over turns and between agents.

At every turn each agent alone is shown a word x and answers one action word. For each agent there is a hidden
assignment of right actions to words, fixed for the whole of training; a turn succeeds when ALL agents are right. The
best policy needs no memory and nothing has to be explored in depth, so what is left to learn from is the reward: which
of the T times N answers behind one number were the good ones. Each argument turns one difficulty up or down:

    horizon, reward    how many turns one reward has to be shared out among (`dense` at any horizon: one)
    num_agents         how many agents it has to be shared out among, and how rare a success is at first, A^-N
    alphabet           how much there is to find out, without changing what a reward says
    feedback           who can read outcomes in the history: `own`, the joint history and each local one; `cross`, the
                       joint history, and a local one only those of another agent; `none`, nobody
    noise              chance in the reward that no action explains

It is a game for studies of methods: a language model of a few thousand weights learns it in a minute on one core. The
exact values of its histories are in `collm.environments.games.relay_values`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collm.environments.base import AGENTS, TASKS, TURNS, Environment, Step
from collm.environments.games.relay_values import history_values
from collm.environments.pay import DENSITIES, paid
from collm.errors import ConfigurationError
from collm.runtime.checks import NOT_NEGATIVE, SHARE_ABOVE_ZERO, WHOLE, Range, check_number
from collm.trajectory import Task, Trajectory

REWARDS = (*DENSITIES, "threshold")
FEEDBACKS = ("own", "cross", "none")


@dataclass(frozen=True)
class State:
    """Where an episode stands.

    Args:
        signals: Words shown at each turn, by agent, [T][N].
        noise_seed: Fixes the noise of the reward, together with the answers.
        correct: Who was right at each turn that was played.
        answers: What was answered so far.
    """

    signals: tuple[tuple[int, ...], ...]
    noise_seed: int
    correct: tuple[tuple[bool, ...], ...] = ()
    answers: tuple[int | None, ...] = ()


class Relay(Environment):
    """Every agent answers its private word at every turn; a turn succeeds when all of them are right.

    An agent sees `x3`, or `ok x3` once there is feedback, and answers `a5`; the first word `a0`, `a1`, ... of a
    response counts, and one without any is wrong.

    Args:
        num_agents: Agents, called relay_1, relay_2, ...
        horizon: Turns of an episode, T.
        alphabet: Words there are to see, and actions to choose from, A.
        feedback: What an agent learns after a turn: `own`: whether it was right itself; `cross`: whether the agent
            before it (the last one, for the first) was; `none`: nothing.
        reward: `dense`: 1 at each turn that succeeds. `sparse`: nothing until the last turn, which pays the number of
            turns that succeeded. `threshold`: the last turn pays T if at least `threshold` of all turns succeeded.
        threshold: Share of turns for the reward `threshold`.
        noise: Standard deviation of a normal number that is added to the reward of the last turn. It is drawn anew for
            every course of answers, so that the episodes of a group do not share it.
        mapping: Which hidden assignment of right actions; each number has its own. In studies it is the seed of a run.
        instructions: Tell each agent the rules first, in words; for models that can read.
        num_tasks: Names of tasks to train on. A task has no content: words are drawn anew in every episode.
        num_eval: Names of tasks to evaluate on.
    """

    def __init__(
        self,
        num_agents: int = 2,
        horizon: int = 16,
        alphabet: int = 8,
        feedback: str = "cross",
        reward: str = "sparse",
        threshold: float = 0.5,
        noise: float = 0.0,
        mapping: int = 0,
        instructions: bool = False,
        num_tasks: int = 64,
        num_eval: int = 16,
    ) -> None:
        for name, value, allowed in (
            ("num_agents", num_agents, AGENTS),
            ("horizon", horizon, TURNS),
            ("alphabet", alphabet, Range(2, 10_000, whole=True)),  # actions are read with up to four digits
            ("num_tasks", num_tasks, TASKS),
            ("num_eval", num_eval, TASKS),
            ("threshold", threshold, SHARE_ABOVE_ZERO),
            ("noise", noise, NOT_NEGATIVE),
            ("mapping", mapping, WHOLE),
        ):
            check_number(name, value, allowed)
        for name, value, known in (("feedback", feedback, FEEDBACKS), ("reward", reward, REWARDS)):
            if value not in known:
                raise ConfigurationError(f"{name} is {value!r}; choose one of {', '.join(known)}.")
        if feedback == "cross" and num_agents < 2:
            raise ConfigurationError("feedback is 'cross', but a single agent has no other; use 'own' or 'none'.")
        self.agent_ids = tuple(f"relay_{index + 1}" for index in range(num_agents))
        self.horizon = horizon
        self.alphabet = alphabet
        self.feedback = feedback
        self.reward = reward
        self.threshold = threshold
        self.noise = noise
        self.instructions = instructions
        self.min_reward, self.max_reward = 0.0, 1.0 if reward == "dense" else float(horizon)
        self.reward_noise = noise
        chance = random.Random(f"relay {mapping}")
        self.right = [chance.sample(range(alphabet), alphabet) for _ in self.agent_ids]  # action by agent and word
        self._tasks = {
            "train": [Task(f"relay {index}", {}) for index in range(num_tasks)],
            "eval": [Task(f"held-out relay {index}", {}) for index in range(num_eval)],
        }

    def tasks(self, split: str) -> Sequence[Task]:
        """Names to play under."""
        return self._tasks[split]

    def reset(self, task: Task, rng: random.Random) -> tuple[State, dict[str, str]]:
        """Draw the words of the whole episode."""
        signals = tuple(tuple(rng.randrange(self.alphabet) for _ in self.agent_ids) for _ in range(self.horizon))
        state = State(signals, rng.getrandbits(32))
        shown = self.shown(state)
        if self.instructions:
            shown = {agent_id: self.rules() + text for agent_id, text in shown.items()}
        return state, shown

    def rules(self) -> str:
        """What an agent that can read is told first."""
        last = self.alphabet - 1
        return (
            f"At each of {self.horizon} turns you see one of the words x0 to x{last} and answer one of the words a0 to "
            f"a{last}. Each word has one right answer, always the same; find it out. Your team scores when all "
            "agents are right in the same turn. Answer with one word.\n"
        )

    def shown(self, state: State) -> dict[str, str]:
        """What each agent sees at the turn that begins: feedback on the last one and its word."""
        words = [f"x{signal}" for signal in state.signals[len(state.correct)]]
        if state.correct and self.feedback != "none":
            before = 1 if self.feedback == "cross" else 0  # the place -1 is that of the last agent
            words = [
                f"{'ok' if state.correct[-1][place - before] else 'bad'} {word}" for place, word in enumerate(words)
            ]
        return dict(zip(self.agent_ids, words, strict=True))

    def step(self, state: State, joint_action: Mapping[str, str]) -> Step:
        """Judge the answers of a turn."""
        turn = len(state.correct)
        answers = [self.read(joint_action[agent_id]) for agent_id in self.agent_ids]
        right = [table[signal] for table, signal in zip(self.right, state.signals[turn], strict=True)]
        correct = tuple(answer == best for answer, best in zip(answers, right, strict=True))
        state = State(state.signals, state.noise_seed, (*state.correct, correct), (*state.answers, *answers))
        over = turn + 1 == self.horizon
        successes, most = float(sum(map(all, state.correct))), float(self.horizon)
        reward = paid(self.reward, float(all(correct)), successes, over, least=self.threshold * most, most=most)
        if over and self.noise:
            reward += random.Random(f"{state.noise_seed} {state.answers}").gauss(0.0, self.noise)
        info = {
            "correct": dict(zip(self.agent_ids, correct, strict=True)),
            "right": {agent_id: f"a{best}" for agent_id, best in zip(self.agent_ids, right, strict=True)},
            "invalid": [name for name, answer in zip(self.agent_ids, answers, strict=True) if answer is None],
        }
        return Step(state, {} if over else self.shown(state), reward, {"success": float(all(correct))}, over, info)

    def read(self, text: str) -> int | None:
        """The first action in `text`, None if there is none."""
        found = (int(match[1]) for match in re.finditer(r"\ba(\d{1,4})\b", text))
        return next((action for action in found if action < self.alphabet), None)

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Shares of turns: `success` of the team, `accuracy` of single agents, `invalid` responses."""
        judged = [turn.info["correct"] for turn in trajectory.turns]
        total = len(judged) * len(self.agent_ids)
        return {
            "success": sum(all(correct.values()) for correct in judged) / len(judged),
            "accuracy": sum(sum(correct.values()) for correct in judged) / total,
            "invalid": sum(len(turn.info["invalid"]) for turn in trajectory.turns) / total,
        }

    def demonstrate(self, state: State, rng: random.Random) -> dict[str, str]:
        """Every agent is right."""
        signals = state.signals[len(state.correct)]
        return {
            agent_id: f"a{table[signal]}"
            for agent_id, table, signal in zip(self.agent_ids, self.right, signals, strict=True)
        }

    def right_answers(self, trajectory: Trajectory) -> list[dict[str, str]]:
        """The right answer of each agent at each turn."""
        return [dict(turn.info["right"]) for turn in trajectory.turns]

    def values(
        self, trajectories: Sequence[Trajectory], probabilities: Sequence[Sequence[Mapping[str, float]]]
    ) -> list[list[dict[str, float]]]:
        """What each history is worth; see `collm.environments.games.relay_values`."""
        if self.reward == "threshold":
            raise ConfigurationError("values of histories are known for the rewards 'dense' and 'sparse' only.")
        correct = [
            [[turn.info["correct"][name] for name in self.agent_ids] for turn in trajectory.turns]
            for trajectory in trajectories
        ]
        chances = [[[turn[name] for name in self.agent_ids] for turn in rows] for rows in probabilities]
        found = history_values(correct, chances, self.feedback, self.reward == "sparse")
        return [[dict(zip(("team", *self.agent_ids), turn, strict=True)) for turn in rows] for rows in found]
