"""What the games on a grid share: how answers are read, how agents walk and send messages, how maps are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from collm.environments.games.answers import Line, numbers, read_lines
from collm.environments.games.grid import Cell, viewed, walk
from collm.errors import ConfigurationError

# Number of repeated maps in a row, for each different one, after which no more different maps are expected.
_PATIENCE = 20

REASONS = {
    "unknown_command": "this is not one of the commands",
    "bad_numbers": "the command needs other numbers",
    "over_limit": "you have used up this command for the turn",
}


@dataclass(frozen=True, kw_only=True)
class GridRules:
    """The constants that every game has; see the environments."""

    agent_ids: tuple[str, ...]
    vision: int
    steps: int
    horizon: int
    communication: str
    message_limit: int
    max_characters: int


@dataclass(frozen=True)
class Walker:
    """One agent's part of a state.

    Args:
        way: The cells of its last walk; it stands on the last one.
        seen: Cells that it has seen so far.
        told: What messages told it, by fact.
        reported: Facts that it has told so far, also those that were wrong about a cell that it had seen.
        heard: Texts that reached it after the last turn, with their senders.
        sent: What it sent in the last turn, for pictures.
        rejected: Lines of its last answer without effect, each with the reason.
    """

    way: tuple[Cell, ...]
    seen: frozenset[Cell]
    told: Mapping[Any, Any] = field(default_factory=dict)
    reported: frozenset[Any] = frozenset()
    heard: tuple[tuple[str, str], ...] = ()
    sent: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def position(self) -> Cell:
        """Where it stands."""
        return self.way[-1]


AnyWalker = TypeVar("AnyWalker", bound=Walker)


@dataclass(frozen=True, kw_only=True)
class GridState:
    """State of an episode.

    Args:
        agents: The agents, in their order.
        turn: Number of turns played.
        total: Sum of the rewards so far, as if every turn were paid.
    """

    agents: tuple[Any, ...]
    turn: int = 0
    total: float = 0.0


@dataclass
class Answer:
    """What an agent wants to do in a turn: where to go, its other commands by verb, and a text to send."""

    go: Cell | None = None
    commands: dict[str, list[tuple[Line, Any]]] = field(default_factory=dict)
    says: str = ""
    rejected: list[tuple[str, str]] = field(default_factory=list)


# Reads the arguments of a command; returns None if they are not the numbers that it needs.
Reader = Callable[[Sequence[str]], Any]


def read_cell(words: Sequence[str]) -> Cell | None:
    """Two words as a cell."""
    cell = numbers(words, 2)
    return (cell[0], cell[1]) if cell else None


def read_answer(rules: GridRules, text: str, tell: Reader, commands: Mapping[str, tuple[Reader, int]]) -> Answer:
    """Parse an answer; never raises.

    Args:
        rules: They say whether agents may `tell` facts, `say` a text, or neither.
        text: What the agent wrote.
        tell: Reads the arguments of `tell`.
        commands: The game's own commands besides `go`: the reader of their arguments, and how many an agent may give.
    """
    allowed: dict[str, tuple[Reader, int]] = {"go": (read_cell, 1), **commands}
    if rules.communication == "facts":
        allowed["tell"] = (tell, rules.message_limit)
    answer = Answer(commands={verb: [] for verb in (*allowed, "tell")})
    for line in read_lines(text):
        reason = None
        if line.verb == "say" and rules.communication == "text":
            reason = "over_limit" if answer.says else None if line.rest else "unknown_command"
            answer.says = answer.says or line.rest[: rules.max_characters]
        elif line.verb not in allowed:
            reason = "unknown_command"
        else:
            reader, most = allowed[line.verb]
            meant, given = reader(line.arguments), answer.commands[line.verb]
            reason = "bad_numbers" if meant is None else "over_limit" if len(given) >= most else None
            if reason is None:
                given.append((line, meant))
        if reason:
            answer.rejected.append((line.text, reason))
    answer.go = next((cell for _, cell in answer.commands["go"]), None)
    return answer


def walked(rules: GridRules, agent: AnyWalker, answer: Answer, width: int, height: int) -> AnyWalker:
    """The agent after its walk towards the cell of `go`, or towards the nearest one on the grid."""
    x, y = answer.go or agent.position
    way = walk(agent.position, (min(max(x, 0), width - 1), min(max(y, 0), height - 1)), rules.steps)
    return replace(agent, way=way, seen=agent.seen | viewed(way, rules.vision, width, height))


def after_messages(
    rules: GridRules,
    agents: Sequence[AnyWalker],
    answers: Sequence[Answer],
    told: Sequence[Mapping[Any, Any]],
    reported: Sequence[Iterable[Any]],
    facts: Sequence[Sequence[str]],
) -> tuple[AnyWalker, ...]:
    """The agents at the end of a turn.

    Args:
        rules: The rules.
        agents: The agents, in their order.
        answers: What each wanted to do, with all lines that were rejected.
        told: What each agent has been told so far.
        reported: Facts that each told in this turn.
        facts: Those of them that were sent, as text.
    """
    said = [(agent_id, answer.says) for agent_id, answer in zip(rules.agent_ids, answers, strict=True) if answer.says]
    return tuple(
        replace(
            agent,
            told=told[index],
            reported=agent.reported | set(reported[index]),
            heard=tuple((agent_id, text) for agent_id, text in said if agent_id != rules.agent_ids[index]),
            sent=(*facts[index], *([answers[index].says] if answers[index].says else [])),
            rejected=tuple(answers[index].rejected),
        )
        for index, agent in enumerate(agents)
    )


class GridMap(Protocol):
    """A map that is made from the plain data of a task."""

    @property
    def data(self) -> dict[str, Any]:
        """The map as plain data."""


AnyMap = TypeVar("AnyMap", bound=GridMap)


def different_maps(count: int, draw: Callable[[], AnyMap], enlarge: str) -> list[AnyMap]:
    """`count` different maps from `draw`; raises `ConfigurationError` (`enlarge` is its remedy) if there are fewer."""
    found: dict[str, AnyMap] = {}
    repeated = 0
    while len(found) < count and repeated <= _PATIENCE * len(found):
        drawn, known = draw(), len(found)
        found.setdefault(str(drawn.data), drawn)
        repeated = repeated + 1 if len(found) == known else 0
    if len(found) == count:
        return list(found.values())
    raise ConfigurationError(
        f"num_maps + num_eval: asked for {count} different maps, got only {len(found)}; ask for fewer, or {enlarge}."
    )
