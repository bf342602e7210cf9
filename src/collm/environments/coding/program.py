"""Parses the responses of agents and assembles one program, using syntax trees.

A response can hold prose, code fences, several functions, imports and constants. Top-level definitions are kept in full
(with decorators, type hints and nested functions), and so are imports, classes and constants. Other top-level code,
such as examples of use, is dropped.

Parsing never raises and is fast for every response: the length of the text, the depth of its syntax tree and the size
of its numbers are limited, and every pass is linear. Programs are assembled from pieces of the original text, because
`ast.unparse` fails on some trees. They are compiled in the sandbox only, as compiling can take exponential time.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

HELPER = "aux"
# Longer than any solution; parsing stays fast for every response.
MAX_CHARACTERS = 8_000
# Levels of a syntax tree, and bits of an integer. The higher limits of Python depend on its version, its settings and
# the depth of the call stack; with these limits, the same programs parse everywhere.
MAX_DEPTH = 200
MAX_BITS = 13_000
# Largest number of top-level pieces that are parsed one by one if the complete response does not parse.
MAX_PIECES = 100

Definition = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

_LANGUAGE = re.compile(r"[\w+-]*")
_BEGINS_DEFINITION = re.compile(r"@|(?:async\s+)?def\s|class\s")
_BEGINS_CODE = re.compile(r"(?:@|(?:async\s+)?def\s|class\s|import\s|from\s+[\w.]+\s+import\b|\w+\s*(?::[^=]+)?=[^=])")
_FILE = "<response>"

# Warnings of Python about responses would fill the log, and raise if warnings are errors.
warnings.filterwarnings("ignore", module=re.escape(_FILE))


@dataclass(frozen=True)
class Statement:
    """A top-level statement: its syntax tree, and its text, which begins with the comments above it."""

    node: ast.stmt
    text: str


@dataclass
class Source:
    """The parsed code of one response.

    Args:
        statements: Top-level statements for the program.
        error: Why a definition does not parse, with its line in the response; empty if all do.
        text: The response without fences.
    """

    statements: list[Statement] = field(default_factory=list)
    error: str = ""
    text: str = ""

    @property
    def nodes(self) -> list[ast.stmt]:
        """Syntax trees of the statements."""
        return [statement.node for statement in self.statements]

    def definition(self, name: str) -> Definition | None:
        """The last top-level function of that name."""
        matches = [node for node in self.nodes if isinstance(node, DEFINITIONS) and node.name == name]
        return matches[-1] if matches else None

    def attempts(self, name: str) -> bool:
        """Whether the text defines a function of that name that returns something, even if it does not parse."""
        definition = self.definition(name)
        if definition is not None:
            return returns(definition)
        written = self._written(name)
        return bool(self.error and written and re.search(r"\breturn\b", self.text[written.end() :]))

    def broken(self, name: str) -> str:
        """Why the function of that name in the text does not parse; empty if it does or is not there."""
        return self.error if self.definition(name) is None and self._written(name) else ""

    def _written(self, name: str) -> re.Match[str] | None:
        return re.search(rf"^[^\S\n]*(?:async\s+)?def\s+{re.escape(name)}\s*\(", self.text, re.MULTILINE)


def read_source(text: str) -> Source:
    """Parse a response; never raises."""
    text = _unix(text[:MAX_CHARACTERS]).expandtabs(4)[:MAX_CHARACTERS]
    fenced = [block for block in _fenced(text) if block.strip()]
    text = "\n".join(fenced) if any("def " in block for block in fenced) else text.replace("```", "")
    text = _dedent(text)
    try:
        return Source(_kept(parse(text)), "", text)
    except SyntaxError:
        return _read_pieces(text)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")


def _fenced(text: str) -> list[str]:
    """Code between fences. A fence opens a block if only the name of a language follows it on its line."""
    parts = text.split("```")
    blocks = []
    index = 1
    while index < len(parts):
        language, newline, block = parts[index].partition("\n")
        opens = bool(newline) and _LANGUAGE.fullmatch(language.strip()) is not None
        blocks += [block] if opens else []
        index += 2 if opens else 1
    return blocks


def _dedent(text: str) -> str:
    """Remove the indentation that all lines share."""
    lines = text.split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)


def parse(text: str) -> list[Statement]:
    """The statements of a program; raises SyntaxError, and no other exception, if it does not parse."""
    try:
        tree = ast.parse(text, _FILE)
    except (MemoryError, RecursionError):
        raise SyntaxError("it is nested too deeply") from None
    except ValueError as error:  # null bytes, halves of surrogate pairs
        raise SyntaxError(str(error)) from None
    _check_size(tree)
    data = text.encode()
    starts = [0]
    for line in data.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    statements, begin = [], 0
    for node in tree.body:
        # A statement begins where the previous one ended, as the position of a decorator does not include its @.
        assert node.end_lineno is not None  # only nodes that were not parsed lack positions
        assert node.end_col_offset is not None
        end = starts[node.end_lineno - 1] + node.end_col_offset
        statements.append(Statement(node, data[begin:end].decode().lstrip(" \t\f\n;\\")))
        begin = end
    return statements


def _check_size(tree: ast.AST) -> None:
    """Raise SyntaxError for a tree deeper than MAX_DEPTH or a number of more than MAX_BITS bits."""
    level = [tree]
    for _ in range(MAX_DEPTH):
        below: list[ast.AST] = []
        for node in level:
            for value in vars(node).values():
                if isinstance(value, ast.AST):
                    below.append(value)
                elif isinstance(value, list):
                    below += [item for item in value if isinstance(item, ast.AST)]
                elif isinstance(value, int) and value.bit_length() > MAX_BITS:
                    raise SyntaxError("a number has too many digits")
        if not below:
            return
        level = below
    raise SyntaxError("it is nested too deeply")


def _read_pieces(text: str) -> Source:
    """Parse the top-level pieces of a text one by one, if the complete text does not parse."""
    source = Source(text=text)
    pieces: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        decorated = bool(pieces) and pieces[-1][1][-1].startswith("@")
        if not pieces or (line[:1].strip() and line[0] not in ")]}" and not decorated):
            pieces.append((number, []))
        pieces[-1][1].append(line)
    for number, lines in [piece for piece in pieces if _BEGINS_CODE.match(piece[1][0])][:MAX_PIECES]:
        try:
            statements = parse("\n".join(lines))
        except SyntaxError as error:
            if not _BEGINS_DEFINITION.match(lines[0]):
                continue  # prose that begins with such a word
            line_number = number + (error.lineno or 1) - 1
            source.error = source.error or f"line {line_number}: {error.msg}"
            continue
        source.statements += _kept(statements)
    return source


def _kept(statements: Sequence[Statement]) -> list[Statement]:
    """Definitions, imports and constants, without constants computed by a function of the response itself."""
    names = {statement.node.name for statement in statements if isinstance(statement.node, DEFINITIONS)} | {HELPER}
    kept: list[Statement] = []
    for statement in statements:
        node = statement.node
        is_assignment = isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))
        is_constant = is_assignment and not names & names_read(walk(node))
        if is_constant or isinstance(node, (*DEFINITIONS, ast.ClassDef, ast.Import, ast.ImportFrom)):
            kept.append(statement)
    return kept


def walk(node: ast.AST) -> list[ast.AST]:
    """A node and all its descendants, like `ast.walk`, but three times as fast."""
    nodes = [node]
    for each in nodes:
        for value in vars(each).values():
            if isinstance(value, ast.AST):
                nodes.append(value)
            elif isinstance(value, list):
                nodes += [item for item in value if isinstance(item, ast.AST)]
    return nodes


def names_read(nodes: Iterable[ast.AST]) -> set[str]:
    """Names whose values are read."""
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def read_prompt(prompt: str) -> list[Statement]:
    """Statements of a problem's prompt; raises SyntaxError. A signature without a body at the end gets one."""
    prompt = _unix(prompt)
    try:
        return parse(prompt)
    except SyntaxError:
        return parse(prompt.rstrip() + "\n    pass\n")


@lru_cache(maxsize=64)
def _around(prompt: str, entry_point: str) -> tuple[Statement, ...]:
    return tuple(each for each in read_prompt(prompt) if getattr(each.node, "name", None) != entry_point)


def surroundings(prompt: str, entry_point: str) -> str:
    """Code of a problem besides its entry point: imports, constants, helper functions."""
    return "\n".join(each.text for each in _around(prompt, entry_point))


def assemble(prompt: str, entry_point: str, helper: Source | None, main: Source) -> str:
    """One program: the code of the problem, then that of the helper's author, then that of the entry point's author.

    Definitions of the entry point by the helper's author, and of the helper by the other author, are dropped.
    """
    parts = list(_around(prompt, entry_point))
    if helper is not None:
        parts += [each for each in helper.statements if getattr(each.node, "name", None) != entry_point]
    parts += [each for each in main.statements if helper is None or getattr(each.node, "name", None) != HELPER]
    # Imports from __future__ must come first.
    parts.sort(key=lambda each: not (isinstance(each.node, ast.ImportFrom) and each.node.module == "__future__"))
    return "\n".join(each.text for each in parts) + "\n"


def _nodes_of(definition: ast.AST) -> list[ast.AST]:
    """All nodes of a function except those of nested functions and classes."""
    nodes, waiting = [], list(ast.iter_child_nodes(definition))
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        if not isinstance(node, (*DEFINITIONS, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))
    return nodes


def returns(definition: Definition) -> bool:
    """Whether a function returns, or yields, something."""
    return any(
        isinstance(node, (ast.Yield, ast.YieldFrom)) or (isinstance(node, ast.Return) and node.value is not None)
        for node in _nodes_of(definition)
    )
