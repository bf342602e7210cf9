"""How the entry point uses the helper, by static analysis of its syntax tree.

The sandbox counts actual calls of the helper while the tests run; see `coding.reward`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from collm.environments.coding.program import DEFINITIONS, HELPER, Definition, Source, names_read, walk

# Functions that only convert the type of their argument.
_CONVERSIONS = frozenset({"bool", "dict", "float", "frozenset", "int", "list", "set", "sorted", "str", "tuple"})
_LEAVING = (ast.Return, ast.Raise, ast.Continue, ast.Break)


@dataclass(frozen=True)
class HelperUse:
    """How the main function uses the helper.

    Args:
        called: Reachable code calls the helper, and the name `aux` is not bound to anything else.
        used: The result of a call is used: it is neither discarded nor assigned to a name that is never read.
        wrapper: The function only returns the result of the helper.
    """

    called: bool
    used: bool
    wrapper: bool


def helper_use(main: Source, entry_point: str) -> HelperUse:
    """How the entry point uses the helper, directly or through functions of the same response."""
    functions = {node.name: node for node in main.nodes if isinstance(node, DEFINITIONS) and node.name != HELPER}
    wrapper = entry_point in functions and is_wrapper(functions[entry_point])
    if any(binds_helper(node) for node in main.nodes):
        return HelperUse(False, False, wrapper)
    reached: dict[str, list[ast.AST]] = {}
    waiting = [entry_point] if entry_point in functions else []
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached[name] = _live(functions[name])
            waiting += [other for other in names_read(reached[name]) if other in functions]
    uses = [_uses(nodes) for nodes in reached.values()]
    return HelperUse(any(calls for calls, _ in uses), any(used for _, used in uses), wrapper)


def binds_helper(tree: ast.AST) -> bool:
    """Whether any statement in the code binds the name of the helper."""
    return any(_binds(node) for node in walk(tree))


def _binds(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id == HELPER and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return (node.asname or node.name.split(".")[0]) == HELPER
    if isinstance(node, ast.keyword):  # the name of another function's parameter
        return False
    # Functions, classes, parameters, `except ... as`, patterns, type parameters, `global` and `nonlocal`.
    return HELPER in (*(getattr(node, field, None) for field in ("name", "arg", "rest")), *getattr(node, "names", ()))


def _is_helper_call(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == HELPER


def _constant(test: ast.AST) -> bool | None:
    """The truth value of a constant condition, else None."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        value = _constant(test.operand)
        return None if value is None else not value
    return bool(test.value) if isinstance(test, ast.Constant) else None


def _reachable(body: Sequence[ast.stmt]) -> tuple[list[ast.stmt], bool]:
    """Statements of a block that can run, and whether one of them always leaves the block.

    `if` statements with constant conditions are resolved, and statements after one that leaves are dropped.
    """
    kept: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If) and (truth := _constant(statement.test)) is not None:
            inner, leaves = _reachable(statement.body if truth else statement.orelse)
            kept += inner
        else:
            kept.append(statement)
            leaves = _leaves(statement)
        if leaves:
            return kept, True
    return kept, False


def _leaves(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return all(_reachable(block)[1] for block in (statement.body, statement.orelse))
    if isinstance(statement, (ast.With, ast.AsyncWith)):
        return _reachable(statement.body)[1]
    return isinstance(statement, _LEAVING)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Children of a node that can run."""
    skipped: tuple[Any, ...] = ()
    if isinstance(node, ast.IfExp) and _constant(node.test) is not None:
        skipped = (node.orelse if _constant(node.test) else node.body,)
    elif isinstance(node, ast.While) and _constant(node.test) is False:
        skipped = (node.body,)
    elif isinstance(node, ast.BoolOp):
        deciding = isinstance(node.op, ast.Or)
        values = node.values
        decided = next((i for i, value in enumerate(values) if _constant(value) is deciding), len(values))
        yield from values[: decided + 1]
        return
    for _, value in ast.iter_fields(node):
        if any(value is one for one in skipped):
            continue
        if isinstance(value, ast.AST):
            yield value
        elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield from _reachable(value)[0]
        elif isinstance(value, list):
            yield from (item for item in value if isinstance(item, ast.AST))


def _live(definition: Definition) -> list[ast.AST]:
    """Reachable nodes of a function. Nested functions count if reachable code uses their names; methods always do."""
    reachable: list[ast.AST] = []
    inner: dict[str, list[ast.AST]] = {}
    waiting: list[ast.AST] = list(_running(definition))
    read: set[str] = set()
    methods: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ClassDef):
            methods.update(map(id, node.body))
        is_plain = not getattr(node, "decorator_list", None) and id(node) not in methods
        if isinstance(node, DEFINITIONS) and is_plain and node.name not in read:
            inner.setdefault(node.name, []).append(node)
            continue
        reachable.append(node)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read.add(node.id)
            waiting += inner.pop(node.id, [])
        waiting += _running(node)
    return reachable


def _uses(nodes: Sequence[ast.AST]) -> tuple[int, bool]:
    """The number of calls of the helper, and whether the result of one is used."""
    calls = sum(map(_is_helper_call, nodes))
    discarded = 0
    read = names_read(nodes)
    for node in nodes:
        if isinstance(node, ast.Expr) and _is_helper_call(node.value):
            discarded += 1
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_helper_call(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in walk(target) if isinstance(name, ast.Name)]
            plain = all(isinstance(part, (ast.Name, ast.Tuple, ast.List, ast.Starred)) for part in targets)
            discarded += plain and not any(name.id in read for name in names)
    return calls, discarded < calls


def is_wrapper(definition: Definition) -> bool:
    """Whether a function is empty, or only returns the result of one call of the helper, possibly converted."""
    body = [
        node
        for node in _reachable(definition.body)[0]
        if not isinstance(node, ast.Pass) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    if not body:
        return True
    last = body[-1]
    if not isinstance(last, ast.Return) or last.value is None:
        return False
    value: ast.AST | None = last.value
    if len(body) == 2:
        first = body[0]
        if not isinstance(first, (ast.Assign, ast.AnnAssign)):
            return False
        targets = first.targets if isinstance(first, ast.Assign) else [first.target]
        name = targets[0] if len(targets) == 1 else None
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
