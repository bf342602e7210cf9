"""The block world of the building games: blocks, commands, and their effect on a world.

Agents write commands, one per line. A line is accepted, or rejected with a reason; rejected lines have no effect and
never raise. The accepted commands of all agents are applied in agent order to a world: a dict from cell to block,
without air.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

Cell = tuple[int, int, int]
Box = tuple[Cell, Cell]
World = dict[Cell, str]

AIR = "air"
AIR_NAMES = frozenset({"air", "cave_air", "void_air"})

# Reasons why a line is rejected, in the order of the checks.
REASONS = {
    "over_command_cap": "you have used up your commands for this turn",
    "unknown_command": "this is not one of the commands",
    "too_few_arguments": "something is missing behind the command",
    "bad_coordinates": "coordinates must be plain integers",
    "block_not_allowed": "this is not one of your blocks",
    "out_of_bounds": "the cell lies outside the box",
    "extra_arguments": "there is too much behind the block",
    "over_resource_limit": "you do not have that many of this block",
}

# Transcripts hold every rejected line, which can be as long as a complete response.
MAX_REPORTED_LINE = 120

# Longer responses are cut; this is enough for some thousand commands.
MAX_CHARACTERS = 40_000

_MARKER = re.compile(r"(?:[-*]+|\d+[.)])\s*")
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")
# Number of coordinates of each verb before the name of the block; None for a verb without arguments.
_COORDINATES = {"setblock": 3, "fill": 6, "kill": None}


@dataclass(frozen=True)
class Command:
    """An accepted command: `verb` and, except for `kill`, the two corners of the cuboid it fills with `block`."""

    verb: str
    start: Cell = (0, 0, 0)
    end: Cell = (0, 0, 0)
    block: str = AIR

    @property
    def cells(self) -> Iterator[Cell]:
        """The cells that the command fills."""
        if self.verb == "kill":
            return iter(())
        x, y, z = (range(min(a, b), max(a, b) + 1) for a, b in zip(self.start, self.end, strict=True))
        return product(x, y, z)

    @property
    def volume(self) -> int:
        """Number of cells that the command fills."""
        sides = [abs(a - b) + 1 for a, b in zip(self.start, self.end, strict=True)]
        return 0 if self.verb == "kill" else sides[0] * sides[1] * sides[2]


@dataclass(frozen=True)
class Rules:
    """Limits on the commands of one agent in one turn.

    Args:
        verbs: Commands of the game.
        blocks: Kinds of block of the agent; `air` is always allowed too.
        box: Lowest and highest cell of the world.
        max_commands: Largest number of accepted commands; further lines are rejected.
        limits: Largest number of cells to fill with each block; a block without an entry, and air, have no limit.
    """

    verbs: Collection[str]
    blocks: Collection[str]
    box: Box
    max_commands: int
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Reading:
    """A parsed response: accepted commands, rejected lines with reasons, and number of cells filled per block."""

    accepted: list[Command] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)


def is_air(block: str) -> bool:
    """Whether `block` leaves a cell empty."""
    return block in AIR_NAMES


def command_lines(text: str) -> list[str]:
    """Lines with commands: those of the first closed code fence if there is one, without list markers."""
    text = text[:MAX_CHARACTERS].strip()
    pieces = text.split("```", 2)
    if len(pieces) == 3:
        first, newline, body = pieces[1].partition("\n")
        # A word right after the fence is the name of a language, not a command.
        text = body if newline and _LANGUAGE.fullmatch(first.strip()) else pieces[1]
    lines = []
    for line in text.splitlines():
        line = line.strip()
        marker = _MARKER.match(line)
        line = line[marker.end() :] if marker else line
        if line:
            lines.append(line)
    return lines


def read_commands(text: str, rules: Rules) -> Reading:
    """Parse a response line by line, in linear time and memory; never raises."""
    reading = Reading()
    for line in command_lines(text):
        if len(reading.accepted) >= rules.max_commands:
            result: Command | str = "over_command_cap"
        else:
            result = _read_line(line, rules, reading.used)
        if isinstance(result, str):
            reading.rejected.append((line[:MAX_REPORTED_LINE], result))
            continue
        reading.accepted.append(result)
        if result.verb != "kill" and not is_air(result.block):
            reading.used[result.block] = reading.used.get(result.block, 0) + result.volume
    return reading


def _read_line(line: str, rules: Rules, used: Mapping[str, int]) -> Command | str:
    """The command of a line, or the reason why it is rejected."""
    # Splitting only the beginning keeps a line of 100 kB cheap.
    words = line.removeprefix("/").split(maxsplit=8)
    verb = words[0].lower() if words else ""
    if verb not in rules.verbs:
        return "unknown_command"
    count = _COORDINATES[verb]
    if count is None:
        return Command(verb)
    if len(words) < count + 2:
        return "too_few_arguments"
    try:
        numbers = [int(word) for word in words[1 : count + 1]]
    except ValueError:
        return "bad_coordinates"
    block = words[count + 1].removeprefix("minecraft:")
    if block != AIR and block not in rules.blocks:
        return "block_not_allowed"
    start = (numbers[0], numbers[1], numbers[2])
    end = (numbers[-3], numbers[-2], numbers[-1])
    if not (inside(start, rules.box) and inside(end, rules.box)):
        return "out_of_bounds"
    if verb == "fill" and len(words) > count + 2:
        return "extra_arguments"
    command = Command(verb, start, end, block)
    limit = None if is_air(block) else rules.limits.get(block)
    if limit is not None and used.get(block, 0) + command.volume > limit:
        return "over_resource_limit"
    return command


def inside(cell: Cell, box: Box) -> bool:
    """Whether `cell` lies in `box`, both corners included."""
    return all(low <= value <= high for value, low, high in zip(cell, *box, strict=True))


def command_shares(max_commands: int, num_agents: int) -> list[int]:
    """Divide the commands of a team: equal integer shares of at least one, and the remainder for the first agent."""
    shares = [max(1, max_commands // num_agents)] * num_agents
    shares[0] += max_commands % num_agents
    return shares


def build(world: Mapping[Cell, str], commands: Iterable[Command]) -> World:
    """The world after `commands`: the last command for a cell counts, and air empties it."""
    result = dict(world)
    for command in commands:
        for cell in command.cells:
            if is_air(command.block):
                result.pop(cell, None)
            else:
                result[cell] = command.block
    return result


def texture(block: str) -> str:
    """Texture of a block; blocks of one material share a texture."""
    name = block.lower()
    if name.endswith(("_planks", "_wood")):
        return "wood"
    if name in {"stone", "cobblestone", "stone_bricks"} or name.endswith(("_stone", "_stone_bricks")):
        return "stone"
    if name.endswith("_concrete"):
        return "concrete"
    return name


def neighbours(world: Mapping[Cell, str]) -> tuple[int, int]:
    """Number of pairs of adjacent blocks along x or y: of one texture, and in total."""
    same = pairs = 0
    for (x, y, z), block in world.items():
        for cell in ((x + 1, y, z), (x, y + 1, z)):
            if cell in world:
                pairs += 1
                same += texture(world[cell]) == texture(block)
    return same, pairs


def iou(target: Collection[Cell], built: Collection[Cell]) -> float:
    """Intersection over union of two sets of cells; 0 if both are empty."""
    either = len(set(target) | set(built))
    return len(set(target) & set(built)) / either if either else 0.0


def plain(world: Mapping[Cell, str]) -> list[list[int | str]]:
    """A world as plain data for transcripts, in a fixed order."""
    return [[*cell, block] for cell, block in sorted(world.items())]


def from_plain(entries: Iterable[Sequence[int | str]]) -> World:
    """The inverse of `plain`."""
    return {(int(x), int(y), int(z)): str(block) for x, y, z, block in entries}
