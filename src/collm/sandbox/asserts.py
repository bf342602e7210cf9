"""Counts each assert statement of a test separately.

A test is Python source that defines `check(candidate)`, or has asserts at its top level. Its units are its assert
statements, including those in loops and in functions of the test. A unit passes if it was reached and never failed, so
a unit in a loop has to pass every time. Asserts of a constant do not depend on the candidate and are no units; asserts
with identical source are the same unit.

A unit also fails if the code around it was interrupted:

- Asserts in a loop or comprehension count when it has run to its end. An exception or a timeout interrupts it; `break`
  and `return` also interrupt a loop, except for `while True`, which has no other end.
- Asserts in a function fail if an exception ends the function before they are reached, even if an earlier call reached
  them.
- Asserts in a function that the test calls more than once count when the test has run to its end.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

Report = Callable[[int, bool, str], None]

_INTERRUPTED = "the code around it was interrupted"
_MAPPING = frozenset({"filter", "map", "starmap"})
_GENERATORS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_YIELDS = (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith)
_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)


@dataclass(frozen=True)
class Unit:
    """One assert statement: its line in the test and its source."""

    line: int
    text: str


def _is_unit(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)


def _assigned(tree: ast.Module) -> set[str]:
    """Names that the test assigns."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}


class _Numbering(ast.NodeVisitor):
    """Numbers the units in the order of the source, and maps every assert to its unit."""

    def __init__(self, source: str, tree: ast.Module):
        self.source = source
        self.assigned = _assigned(tree)
        self.units: list[Unit] = []
        self.numbers: dict[int, int] = {}
        self.seen: dict[str, int] = {}
        self.visit(tree)

    def visit_Assert(self, node: ast.Assert) -> None:
        if not _is_unit(node):
            return
        names = {name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)}
        # Identical source is the same unit only if the test assigns none of the names in it.
        key = f"{id(node)}" if names & self.assigned else ast.dump(node.test)
        if key not in self.seen:
            self.seen[key] = len(self.units)
            self.units.append(Unit(node.lineno, ast.get_source_segment(self.source, node) or ast.unparse(node)))
        self.numbers[id(node)] = self.seen[key]


def _suspends(function: ast.AST) -> bool:
    """Whether a function is a generator or coroutine, which can be suspended."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, _YIELDS):
            return True
        if not isinstance(node, (*_FUNCTIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return False


def _repeated(tree: ast.Module, numbers: dict[int, int]) -> set[int]:
    """Units in functions whose name the test uses more than once."""
    names = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) and names[node.name] > 1]
    return {numbers[id(node)] for function in functions for node in ast.walk(function) if id(node) in numbers}


class _Instrument(ast.NodeTransformer):
    """Wraps asserts in `with __unit__(number):`, and code that may be interrupted in `with __scope__(...):`."""

    def __init__(self, numbers: dict[int, int]):
        self.numbers = numbers
        self.suspends = False

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if id(node) not in self.numbers:
            return node
        return _in_with(_call("__unit__", self.numbers[id(node)]), [node], node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        outer = self.suspends
        # Scopes must end in reverse order, which generators do not guarantee.
        self.suspends = _suspends(node)
        numbers = sorted({self.numbers[id(inner)] for inner in ast.walk(node) if id(inner) in self.numbers})
        self.generic_visit(node)
        if numbers and not self.suspends:
            node.body = [_in_with(_call("__body__", *numbers), node.body, node)]
        self.suspends = outer
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._loop(node, ends_by_break=False)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._loop(node, ends_by_break=isinstance(node.test, ast.Constant) and bool(node.test.value))

    def _loop(self, node: ast.For | ast.While, ends_by_break: bool) -> ast.AST:
        self.generic_visit(node)
        if self.suspends:
            return node
        if not ends_by_break:
            node.orelse = [ast.copy_location(ast.Expr(_call("__ended__")), node), *node.orelse]
        return _in_with(_call("__scope__", ends_by_break), [node], node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self.suspends or not isinstance(node, _SIMPLE):
            return node
        repeats = any(
            isinstance(inner, _GENERATORS) or (isinstance(inner, ast.Name) and inner.id in _MAPPING)
            for inner in ast.walk(node)
        )
        return _in_with(_call("__scope__", True), [node], node) if repeats else node


def _call(name: str, *arguments: int) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), [ast.Constant(argument) for argument in arguments], [])


def _in_with(manager: ast.Call, body: list[ast.stmt], location: ast.AST) -> ast.With:
    return ast.copy_location(ast.With([ast.withitem(manager)], body), location)


def units_of(test: str) -> list[Unit]:
    """The units of a test; raises SyntaxError."""
    return _Numbering(test, ast.parse(test)).units


def instrument(test: str) -> tuple[ast.Module, set[int]]:
    """The instrumented test, and the units that count only when the test has run to its end.

    The namespace in which it runs must contain `Recorder.names`.
    """
    tree = ast.parse(test)
    numbers = _Numbering(test, tree).numbers
    repeated = _repeated(tree, numbers)
    return ast.fix_missing_locations(_Instrument(numbers).visit(tree)), repeated


class Recorder:
    """Records which units of an instrumented test pass, and reports them when the result is final.

    Args:
        report: Called with a unit's number, whether it passes, and why it fails. Failures are reported at once; a
            passed unit in code that may be interrupted is reported when that code has ended.
        describe: Formats an exception.
        repeated: Units that count only when the test has run to its end.
    """

    def __init__(self, report: Report, describe: Callable[[BaseException], str], repeated: Iterable[int]):
        self.report = report
        self.describe = describe
        self.repeated = frozenset(repeated)
        self.pending: dict[int, None] = {}
        self.scopes: list[_Scope] = []
        self.bodies: list[_Body] = []
        self.names = {
            "__unit__": lambda number: _Unit(self, number),
            "__scope__": lambda ended: _Scope(self, ended),
            "__body__": lambda *numbers: _Body(self, numbers),
            "__ended__": self._ended,
        }

    def _ended(self) -> None:
        self.scopes[-1].ended = True

    def record_passed(self, numbers: Iterable[int]) -> None:
        """Record passed units; inside of a scope they stay pending."""
        if self.scopes:
            self.scopes[-1].pending.update(dict.fromkeys(numbers))
            return
        for number in numbers:
            if number in self.repeated:
                self.pending[number] = None
            else:
                self.report(number, True, "")

    def finish(self, completed: bool) -> None:
        """Report the pending units when the test was completed or interrupted."""
        for number in self.pending:
            self.report(number, completed, "" if completed else _INTERRUPTED)


class _Unit:
    """`with _Unit(...)`: records whether the assert inside passes; the test continues either way."""

    def __init__(self, recorder: Recorder, number: int):
        self.recorder = recorder
        self.number = number

    def __enter__(self) -> None:
        for body in self.recorder.bodies[-1:]:
            body.reached.add(self.number)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            self.recorder.record_passed([self.number])
        else:
            self.recorder.report(self.number, False, self.recorder.describe(error))
        return True


class _Scope:
    """`with _Scope(...)`: units that pass inside count if the code inside runs to its end."""

    def __init__(self, recorder: Recorder, ended: bool):
        self.recorder = recorder
        self.ended = ended
        self.pending: dict[int, None] = {}

    def __enter__(self) -> None:
        self.recorder.scopes.append(self)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.recorder.scopes.pop()
        if self.ended and error is None:
            self.recorder.record_passed(self.pending)
            return
        for number in self.pending:
            self.recorder.report(number, False, _INTERRUPTED)


class _Body:
    """`with _Body(...)`: units of a function that were not reached when an exception ended it fail."""

    def __init__(self, recorder: Recorder, numbers: tuple[int, ...]):
        self.recorder = recorder
        self.numbers = numbers
        self.reached: set[int] = set()

    def __enter__(self) -> None:
        self.recorder.bodies.append(self)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.recorder.bodies.pop()
        if error is not None:
            for number in self.numbers:
                if number not in self.reached:
                    self.recorder.report(number, False, "not reached")
