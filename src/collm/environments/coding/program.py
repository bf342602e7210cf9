"""From what agents wrote to one program, decided on the syntax tree.

A response may hold prose, code fences, several functions, imports and constants. Definitions at the top level are kept
with all they carry (decorators, type hints, nested functions), and so are imports, classes and constants; what would
only run when the program is loaded, such as examples of use, is left out.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

HELPER = "aux"
# Nobody writes a solution this long; reading stays fast whatever a model produces.
MAX_CHARACTERS = 40_000

Definition = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SYNTAX_ERRORS = (SyntaxError, ValueError, MemoryError, RecursionError)

_FENCED = re.compile(r"```[^\S\n]*[\w+-]*[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BEGINS_DEFINITION = re.compile(r"@|(?:async\s+)?def\s|class\s")
_BEGINS_CODE = re.compile(r"(?:@|(?:async\s+)?def\s|class\s|import\s|from\s+[\w.]+\s+import\b|\w+\s*(?::[^=]+)?=[^=])")
# Functions that change only the type of what they are given.
_CONVERSIONS = frozenset({"bool", "dict", "float", "frozenset", "int", "list", "set", "sorted", "str", "tuple"})


@dataclass
class Source:
    """What was understood of one response.

    Args:
        nodes: Top-level statements that belong into a program.
        error: Why a definition could not be read, with its place in the response.
        text: The response without fences.
    """

    nodes: list[ast.stmt] = field(default_factory=list)
    error: str = ""
    text: str = ""

    def definition(self, name: str) -> Definition | None:
        """The last top-level function of that name."""
        found = [node for node in self.nodes if isinstance(node, _DEFINITIONS) and node.name == name]
        return found[-1] if found else None

    def attempts(self, name: str) -> bool:
        """Whether a function of that name that returns something is written down, readable or not."""
        definition = self.definition(name)
        if definition is not None:
            return returns(definition)
        written = self._written(name)
        return bool(self.error and written and re.search(r"\breturn\b", self.text[written.end() :]))

    def broken(self, name: str) -> str:
        """Why the function of that name, which is written down, cannot be read; else empty."""
        return self.error if self.definition(name) is None and self._written(name) else ""

    def _written(self, name: str) -> re.Match[str] | None:
        return re.search(rf"^[^\S\n]*(?:async\s+)?def\s+{re.escape(name)}\s*\(", self.text, re.MULTILINE)


def read_source(text: str) -> Source:
    """Understand a response; no text makes it raise."""
    text = text[:MAX_CHARACTERS].replace("\r\n", "\n").expandtabs(4)
    fenced = [block for block in _FENCED.findall(text) if block.strip()]
    text = "\n".join(fenced) if any("def " in block for block in fenced) else text.replace("```", "")
    text = textwrap.dedent(text)
    try:
        return Source(_kept(ast.parse(text).body), "", text)
    except _SYNTAX_ERRORS:
        return _read_pieces(text)


def _read_pieces(text: str) -> Source:
    """Understand a text that is no program as a whole, one top-level piece after the other."""
    source = Source(text=text)
    pieces: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        decorated = bool(pieces) and pieces[-1][1][-1].startswith("@")
        if not pieces or (line[:1].strip() and line[0] not in ")]}" and not decorated):
            pieces.append((number, []))
        pieces[-1][1].append(line)
    for number, lines in pieces:
        if not _BEGINS_CODE.match(lines[0]):
            continue
        try:
            nodes = ast.parse("\n".join(lines)).body
        except _SYNTAX_ERRORS as error:
            if not _BEGINS_DEFINITION.match(lines[0]):
                continue  # prose that begins with such a word
            place = number + (getattr(error, "lineno", None) or 1) - 1
            source.error = source.error or f"line {place}: {getattr(error, 'msg', None) or error}"
            continue
        source.nodes += _kept(nodes)
    return source


def _kept(nodes: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Definitions, imports and constants; no constant that is worked out by a function of the response itself."""
    own = {node.name for node in nodes if isinstance(node, _DEFINITIONS)} | {HELPER}
    kept: list[ast.stmt] = []
    for node in nodes:
        is_constant = isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and not own & _names(node)
        if is_constant or isinstance(node, (*_DEFINITIONS, ast.ClassDef, ast.Import, ast.ImportFrom)):
            kept.append(node)
    return kept


def _names(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load)}


def read_prompt(prompt: str) -> list[ast.stmt]:
    """Statements of a problem's prompt; raises SyntaxError. A prompt that ends in a bare signature is completed."""
    try:
        return ast.parse(prompt).body
    except SyntaxError:
        return ast.parse(prompt.rstrip() + "\n    pass\n").body


def surroundings(prompt: str, entry_point: str) -> str:
    """What a problem defines around its entry point: imports, constants, helper functions."""
    others = [node for node in read_prompt(prompt) if getattr(node, "name", None) != entry_point]
    return "\n".join(map(ast.unparse, others))


def assemble(prompt: str, entry_point: str, helper: Source | None, main: Source) -> str:
    """One program: what the problem defines, then the helper's code, then the code around and of the entry point.

    The helper's author does not get to define the entry point, nor the other one the helper.
    """
    given = ast.parse(surroundings(prompt, entry_point)).body
    nodes = list(given)
    if helper is not None:
        nodes += [node for node in helper.nodes if getattr(node, "name", None) != entry_point]
    nodes += [node for node in main.nodes if helper is None or getattr(node, "name", None) != HELPER]
    future = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    return "\n".join(ast.unparse(node) for node in [*future, *(node for node in nodes if node not in future)]) + "\n"


def _own(definition: ast.AST) -> list[ast.AST]:
    """All nodes in a function but those of functions within."""
    found, waiting = [], list(ast.iter_child_nodes(definition))
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda, ast.ClassDef)):
            waiting.extend(ast.iter_child_nodes(node))
    return found


def returns(definition: Definition) -> bool:
    """Whether a function returns, or yields, something."""
    return any(
        isinstance(node, (ast.Yield, ast.YieldFrom)) or (isinstance(node, ast.Return) and node.value is not None)
        for node in _own(definition)
    )


@dataclass(frozen=True)
class HelperUse:
    """What the main function makes of the helper.

    Args:
        called: It calls the helper.
        used: The result of a call goes somewhere: it is neither left standing nor put into a name that is never read.
        wrapper: It does nothing but hand on what the helper returns.
    """

    called: bool
    used: bool
    wrapper: bool


def helper_use(main: Source, entry_point: str) -> HelperUse:
    """How the entry point uses the helper, directly or through functions of the same response."""
    functions = {node.name: node for node in main.nodes if isinstance(node, _DEFINITIONS) and node.name != HELPER}
    reached: list[str] = []
    waiting = [entry_point] if entry_point in functions else []
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.append(name)
            waiting += [other for other in _names(functions[name]) if other in functions]
    uses = [_uses(functions[name]) for name in reached]
    called = any(calls for calls, _ in uses)
    used = any(used for _, used in uses)
    return HelperUse(called, used, entry_point in functions and is_wrapper(functions[entry_point]))


def _is_helper_call(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == HELPER


def _binds_helper(definition: ast.AST) -> bool:
    """Whether the name of the helper means something else here."""
    for node in ast.walk(definition):
        if isinstance(node, ast.arg) and node.arg == HELPER:
            return True
        if isinstance(node, ast.Name) and node.id == HELPER and not isinstance(node.ctx, ast.Load):
            return True
        if isinstance(node, (*_DEFINITIONS, ast.ClassDef)) and node.name == HELPER:
            return True
    return False


def _uses(definition: Definition) -> tuple[int, bool]:
    """How many calls of the helper a function has, and whether the result of one is used."""
    calls = sum(map(_is_helper_call, ast.walk(definition)))
    if not calls or _binds_helper(definition):
        return 0, False
    lost = 0
    read = _names(definition)
    for node in ast.walk(definition):
        if isinstance(node, ast.Expr) and _is_helper_call(node.value):
            lost += 1
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_helper_call(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in ast.walk(target) if isinstance(name, (ast.Name))]
            plain = all(isinstance(part, (ast.Name, ast.Tuple, ast.List, ast.Starred)) for part in targets)
            lost += plain and not any(name.id in read for name in names)
    return calls, lost < calls


def is_wrapper(definition: Definition) -> bool:
    """Whether a function is empty, or one call of the helper whose result it returns, converted at most."""
    body = [node for node in definition.body if not isinstance(node, ast.Pass)]
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    if not body:
        return True
    last = body[-1]
    if not isinstance(last, ast.Return) or last.value is None:
        return False
    value = last.value
    if len(body) == 2:
        first = body[0]
        name = first.targets[0] if isinstance(first, ast.Assign) and len(first.targets) == 1 else None
        name = first.target if isinstance(first, ast.AnnAssign) else name
        if not (isinstance(name, ast.Name) and isinstance(value, ast.Name) and name.id == value.id):
            return False
        value = first.value
    elif len(body) > 2:
        return False
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in _CONVERSIONS:
        if len(value.args) != 1 or value.keywords:
            return False
        value = value.args[0]
    return _is_helper_call(value)
