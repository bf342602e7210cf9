"""The block world that the building games share: names, commands and what they make of a world.

Agents write commands, one per line. A line is either accepted or rejected with a reason; rejected lines change nothing
and are never an error. The accepted commands of all agents, in agent order, are painted into a world: a dict from
cell to block that holds no air.
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

# Why a line is rejected, in the order in which the reasons are tested.
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

# Transcripts keep every rejected line; a line of garbage can be as long as a whole response.
MAX_REPORTED_LINE = 120

# Of a response no more is read: some thousand commands.
MAX_CHARACTERS = 40_000

_MARKER = re.compile(r"(?:[-*]+|\d+[.)])\s*")
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")
# Number of coordinates that each verb takes before the name of the block; None where it takes nothing at all.
_COORDINATES = {"setblock": 3, "fill": 6, "kill": None}


@dataclass(frozen=True)
class Command:
    """An accepted command: `verb` and, but for `kill`, the two corners it fills with `block`."""

    verb: str
    start: Cell = (0, 0, 0)
    end: Cell = (0, 0, 0)
    block: str = AIR

    @property
    def cells(self) -> Iterator[Cell]:
        """The cells that the command paints."""
        if self.verb == "kill":
            return iter(())
        x, y, z = (range(min(a, b), max(a, b) + 1) for a, b in zip(self.start, self.end, strict=True))
        return product(x, y, z)

    @property
    def volume(self) -> int:
        """How many cells the command paints."""
        sides = [abs(a - b) + 1 for a, b in zip(self.start, self.end, strict=True)]
        return 0 if self.verb == "kill" else sides[0] * sides[1] * sides[2]


@dataclass(frozen=True)
class Rules:
    """What one agent may write in one turn.

    Args:
        verbs: Commands of the game.
        blocks: Blocks of the agent; plain air is always allowed as well.
        box: Lowest and highest cell of the world.
        max_commands: Number of accepted commands after which every further line is rejected.
        limits: Cells that may be painted per block; a block without an entry, and air, are unlimited.
    """

    verbs: Collection[str]
    blocks: Collection[str]
    box: Box
    max_commands: int
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Reading:
    """How one response was understood: accepted commands, rejected lines with reasons, cells painted per block."""

    accepted: list[Command] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)


def is_air(block: str) -> bool:
    """Whether `block` leaves a cell empty."""
    return block in AIR_NAMES


def command_lines(text: str) -> list[str]:
    """The lines of `text` that count: inside the first closed code fence if there is one, without list markers."""
    text = text[:MAX_CHARACTERS].strip()
    pieces = text.split("```", 2)
    if len(pieces) == 3:
        first, newline, rest = pieces[1].partition("\n")
        # The word right behind the fence names a language; it must not be mistaken for a command.
        text = rest if newline and _LANGUAGE.fullmatch(first.strip()) else pieces[1]
    lines = []
    for line in text.splitlines():
        line = line.strip()
        marker = _MARKER.match(line)
        line = line[marker.end() :] if marker else line
        if line:
            lines.append(line)
    return lines


def read_commands(text: str, rules: Rules) -> Reading:
    """Read a response line by line; time and memory are linear in its length, and no text makes it raise."""
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
    """The command on one line, or the reason why there is none."""
    # Few commands are long, and splitting only their beginning keeps a 100 kB line cheap.
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
    """Split a team's commands: equal whole shares, at least one each, and the remainder for the first agent."""
    shares = [max(1, max_commands // num_agents)] * num_agents
    shares[0] += max_commands % num_agents
    return shares


def build(world: Mapping[Cell, str], commands: Iterable[Command]) -> World:
    """The world after `commands`: the last write to a cell stays, air empties it."""
    result = dict(world)
    for command in commands:
        for cell in command.cells:
            if is_air(command.block):
                result.pop(cell, None)
            else:
                result[cell] = command.block
    return result


def texture(block: str) -> str:
    """What a block looks like: blocks of one material share a texture."""
    name = block.lower()
    if name.endswith(("_planks", "_wood")):
        return "wood"
    if name in {"stone", "cobblestone", "stone_bricks"} or name.endswith(("_stone", "_stone_bricks")):
        return "stone"
    if name.endswith("_concrete"):
        return "concrete"
    return name


def neighbours(world: Mapping[Cell, str]) -> tuple[int, int]:
    """Pairs of blocks side by side along x or y: those of one texture, and all."""
    same = pairs = 0
    for (x, y, z), block in world.items():
        for cell in ((x + 1, y, z), (x, y + 1, z)):
            if cell in world:
                pairs += 1
                same += texture(world[cell]) == texture(block)
    return same, pairs


def iou(target: Collection[Cell], built: Collection[Cell]) -> float:
    """Intersection over union of two sets of cells; 0 where both are empty."""
    either = len(set(target) | set(built))
    return len(set(target) & set(built)) / either if either else 0.0


def plain(world: Mapping[Cell, str]) -> list[list[int | str]]:
    """A world as plain data for transcripts, in a fixed order."""
    return [[*cell, block] for cell, block in sorted(world.items())]


def from_plain(entries: Iterable[Sequence[int | str]]) -> World:
    """The inverse of `plain`."""
    return {(int(x), int(y), int(z)): str(block) for x, y, z, block in entries}
