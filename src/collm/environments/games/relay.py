"""A relay of private signals: a game that isolates credit assignment over turns and between agents.

At every turn each agent is shown a private word x and answers with one action word. A hidden table gives the correct
action of each agent for each word; it is fixed during training. A turn succeeds if ALL agents are correct. The optimal
policy needs no memory and no deep exploration, so the difficulty is credit assignment: one reward depends on T times N
answers. Each argument sets one difficulty:

    horizon, reward    the number of turns behind one reward (one turn if `dense`)
    num_agents         the number of agents behind one reward; the initial probability of success is A^-N
    alphabet           the number of words to learn; the information in a reward stays the same
    feedback           which histories hold outcomes: `own`, the joint history, and each local one those of its agent;
                       `cross`, the joint history, and each local one those of another agent; `none`, no history
    noise              noise in the reward, independent of skill

The game is for studies of algorithms: a language model of a few thousand weights learns it in a minute on one CPU core.
`collm.environments.games.relay_values` computes exact values of its histories.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from collm.environments.base import Agents, Environment, Step, Tasks, Turns
from collm.environments.games.relay_values import history_values
from collm.environments.pay import paid
from collm.environments.written import lines_as_svg
from collm.errors import ConfigurationError
from collm.runtime.checks import NotNegative, Range, ShareAboveZero, Whole, checked
from collm.trajectory import Task, Trajectory


@dataclass(frozen=True)
class State:
    """State of an episode.

    Args:
        signals: Index of the word shown to each agent at each turn, [T][N].
        noise_seed: Seed of the noise in the reward, together with the answers.
        correct: Whether each agent was correct, at each turn so far.
        answers: All answers so far, of all agents turn by turn.
    """

    signals: tuple[tuple[int, ...], ...]
    noise_seed: int
    correct: tuple[tuple[bool, ...], ...] = ()
    answers: tuple[int | None, ...] = ()


class Relay(Environment):
    """Every agent answers its private word at every turn; a turn succeeds if all of them are correct.

    An observation is `x3`, or `ok x3` with feedback on the last turn, and an answer `a5`. The first word `a0`, `a1`,
    ... of a response is its answer; a response without one is incorrect.

    Args:
        num_agents: Number of agents, named relay_1, relay_2, ...
        horizon: Number of turns of an episode, T.
        alphabet: Number of words, and of actions, A.
        feedback: Feedback of each agent after a turn. `own`: whether it was correct. `cross`: whether the agent before
            it was correct (for the first agent: the last one). `none`: no feedback.
        reward: `dense`: 1 at each turn that succeeds. `sparse`: the number of successful turns, at the last turn.
            `threshold`: T at the last turn if at least the share `threshold` of all turns succeeded, else 0.
        threshold: Share of successful turns that the reward `threshold` needs, above 0 and at most 1.
        noise: Standard deviation of normal noise in the reward of the last turn. Episodes of a group with different
            answers have different noise.
        mapping: Seed of the hidden table of correct actions. In studies it is the seed of the run.
        instructions: Begin the first observation with the rules, for models that understand text.
        num_tasks: Number of training tasks. Tasks differ in name only: words are sampled in every episode.
        num_eval: Number of evaluation tasks.
    """

    @checked
    def __init__(
        self,
        num_agents: Agents = 2,
        horizon: Turns = 16,
        alphabet: Annotated[int, Range(2, 10_000, whole=True)] = 8,  # actions have up to four digits
        feedback: Literal["own", "cross", "none"] = "cross",
        reward: Literal["dense", "sparse", "threshold"] = "sparse",
        threshold: ShareAboveZero = 0.5,
        noise: NotNegative = 0.0,
        mapping: Whole = 0,
        instructions: bool = False,
        num_tasks: Tasks = 64,
        num_eval: Tasks = 16,
    ) -> None:
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
        generator = random.Random(f"relay {mapping}")
        self.right = [generator.sample(range(alphabet), alphabet) for _ in self.agent_ids]  # action by agent and word
        self.splits = {
            "train": [Task(f"relay {index}", {}) for index in range(num_tasks)],
            "eval": [Task(f"held-out relay {index}", {}) for index in range(num_eval)],
        }

    def reset(self, task: Task, rng: random.Random) -> tuple[State, dict[str, str]]:
        """Sample the words of all turns."""
        signals = tuple(tuple(rng.randrange(self.alphabet) for _ in self.agent_ids) for _ in range(self.horizon))
        state = State(signals, rng.getrandbits(32))
        shown = self.shown(state)
        if self.instructions:
            shown = {agent_id: self.rules() + text for agent_id, text in shown.items()}
        return state, shown

    def rules(self) -> str:
        """The rules of the game, at the beginning of the first observation if `instructions` is true."""
        last = self.alphabet - 1
        return (
            f"At each of {self.horizon} turns you see one of the words x0 to x{last} and answer one of the words a0 to "
            f"a{last}. Each word has one right answer, always the same; find it out. Your team scores when all "
            "agents are right in the same turn. Answer with one word.\n"
        )

    def shown(self, state: State) -> dict[str, str]:
        """The observation of each agent: feedback on the last turn, and its word."""
        words = [f"x{signal}" for signal in state.signals[len(state.correct)]]
        if state.correct and self.feedback != "none":
            offset = 1 if self.feedback == "cross" else 0  # index -1 is the last agent
            words = [
                f"{'ok' if state.correct[-1][index - offset] else 'bad'} {word}" for index, word in enumerate(words)
            ]
        return dict(zip(self.agent_ids, words, strict=True))

    def step(self, state: State, joint_action: Mapping[str, str]) -> Step:
        """Compare the answers of a turn with the correct ones."""
        turn = len(state.correct)
        answers = [self.read(joint_action[agent_id]) for agent_id in self.agent_ids]
        right = [table[signal] for table, signal in zip(self.right, state.signals[turn], strict=True)]
        correct = tuple(answer == best for answer, best in zip(answers, right, strict=True))
        state = State(state.signals, state.noise_seed, (*state.correct, correct), (*state.answers, *answers))
        over = turn + 1 == self.horizon
        successes, most = float(sum(map(all, state.correct))), float(self.horizon)
        reward = paid(self.reward, float(all(correct)), successes, over, least=self.threshold, most=most)
        if over and self.noise:
            reward += random.Random(f"{state.noise_seed} {state.answers}").gauss(0.0, self.noise)
        info = {
            "correct": dict(zip(self.agent_ids, correct, strict=True)),
            "right": {agent_id: f"a{best}" for agent_id, best in zip(self.agent_ids, right, strict=True)},
            "invalid": [name for name, answer in zip(self.agent_ids, answers, strict=True) if answer is None],
        }
        return Step(state, {} if over else self.shown(state), reward, {"success": float(all(correct))}, over, info)

    def state_features(self, state: State) -> dict[str, float]:
        """Number of successful turns, and of correct answers of each agent."""
        right = {
            f"right/{agent_id}": sum(correct[index] for correct in state.correct)
            for index, agent_id in enumerate(self.agent_ids)
        }
        return {"successes": sum(map(all, state.correct)), **right}

    def state_text(self, state: State) -> str:
        """The outcome of each turn so far and the current words, in the vocabulary of the observations."""
        outcomes = ["ok" if all(correct) else "bad" for correct in state.correct]
        return " ".join([*outcomes, *(f"x{signal}" for signal in state.signals[len(state.correct)])])

    def progress(self, state: State) -> float:
        """Number of successful turns divided by the horizon."""
        return sum(map(all, state.correct)) / self.horizon

    def render_turn(self, state: State) -> str:
        """A line for each turn so far: the word, the answer of each agent, and whether it was correct."""
        num = len(self.agent_ids)
        lines = []
        for turn, correct in enumerate(state.correct):
            answers = state.answers[num * turn : num * (turn + 1)]
            answered = [
                f"x{signal} {'nothing' if answer is None else f'a{answer}'} {'ok' if right else 'bad'}"
                for signal, answer, right in zip(state.signals[turn], answers, correct, strict=True)
            ]
            lines.append(f"turn {turn + 1}: {', '.join(answered)}")
        return lines_as_svg("\n".join([", ".join(self.agent_ids), *lines]))

    def read(self, text: str) -> int | None:
        """The first action in `text`, None if there is none."""
        numbers = (int(match[1]) for match in re.finditer(r"\ba(\d{1,4})\b", text))
        return next((action for action in numbers if action < self.alphabet), None)

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
        """Every agent gives its correct answer."""
        signals = state.signals[len(state.correct)]
        return {
            agent_id: f"a{table[signal]}"
            for agent_id, table, signal in zip(self.agent_ids, self.right, signals, strict=True)
        }

    def right_answers(self, trajectory: Trajectory) -> list[dict[str, str]]:
        """The correct answer of each agent at each turn."""
        return [dict(turn.info["right"]) for turn in trajectory.turns]

    def values(
        self, trajectories: Sequence[Trajectory], probabilities: Sequence[Sequence[Mapping[str, float]]]
    ) -> list[list[dict[str, float]]]:
        """The value of each history; see `collm.environments.games.relay_values`."""
        if self.reward == "threshold":
            raise ConfigurationError("values of histories are known for the rewards 'dense' and 'sparse' only.")
        correct = [
            [[turn.info["correct"][name] for name in self.agent_ids] for turn in trajectory.turns]
            for trajectory in trajectories
        ]
        by_agent = [[[turn[name] for name in self.agent_ids] for turn in rows] for rows in probabilities]
        values = history_values(correct, by_agent, self.feedback, self.reward == "sparse")
        return [[dict(zip(("team", *self.agent_ids), turn, strict=True)) for turn in rows] for rows in values]
