"""The assert statements of a test, each counted on its own.

A test is Python text that defines `check(candidate)`, or asserts at its top level. Its units are its assert statements,
wherever they stand: over several lines, in loops, in functions of the test. A unit holds if it was reached and never
failed, so one in a loop holds if it held every time. Asserts of a constant say nothing about the candidate and are no
units; asserts that repeat another one word for word are the same unit.

What was cut off does not hold either, however well it went until then:

- Asserts that ran within a loop or a comprehension count once it has run to its end. An exception cuts it off, and so
  does time; a loop is also cut off by `break` and `return`, but for `while True`, which ends in no other way.
- Asserts of a function that an exception ends before they are reached fail, even if an earlier call reached them.
- Asserts of a function that the test names more than once, to call it again, count once the test has run to its end.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

Report = Callable[[int, bool, str], None]

_CUT_OFF = "what it is a part of was cut off"
_MAPPING = frozenset({"filter", "map", "starmap"})
_GENERATORS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_YIELDS = (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith)
_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)


@dataclass(frozen=True)
class Unit:
    """One assert statement: where it stands in the test, and its text."""

    line: int
    text: str


def _is_unit(node: ast.AST) -> bool:
    return isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)


def _assigned(tree: ast.Module) -> set[str]:
    """Names that the test gives a value to in its course."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}


class _Numbering(ast.NodeVisitor):
    """Gives every assert the number of its unit, in the order of the text."""

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
        # The same words mean the same only where nothing in them changes between two places.
        key = f"{id(node)}" if names & self.assigned else ast.dump(node.test)
        if key not in self.seen:
            self.seen[key] = len(self.units)
            self.units.append(Unit(node.lineno, ast.get_source_segment(self.source, node) or ast.unparse(node)))
        self.numbers[id(node)] = self.seen[key]


def _suspends(function: ast.AST) -> bool:
    """Whether a function can stop and go on later."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, _YIELDS):
            return True
        if not isinstance(node, (*_FUNCTIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return False


def _repeated(tree: ast.Module, numbers: dict[int, int]) -> set[int]:
    """Units of functions that the test names more than once."""
    names = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS) and names[node.name] > 1]
    return {numbers[id(node)] for function in functions for node in ast.walk(function) if id(node) in numbers}


class _Instrument(ast.NodeTransformer):
    """Puts asserts into `with __unit__(number):`, and what may be cut off into `with __scope__(...):`."""

    def __init__(self, numbers: dict[int, int]):
        self.numbers = numbers
        self.suspends = False

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if id(node) not in self.numbers:
            return node
        return _within(_call("__unit__", self.numbers[id(node)]), [node], node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        outer = self.suspends
        # Scopes have to end in the reverse order of their beginnings, which generators need not.
        self.suspends = _suspends(node)
        numbers = sorted({self.numbers[id(inner)] for inner in ast.walk(node) if id(inner) in self.numbers})
        self.generic_visit(node)
        if numbers and not self.suspends:
            node.body = [_within(_call("__body__", *numbers), node.body, node)]
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
        return _within(_call("__scope__", ends_by_break), [node], node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if self.suspends or not isinstance(node, _SIMPLE):
            return node
        repeats = any(
            isinstance(inner, _GENERATORS) or (isinstance(inner, ast.Name) and inner.id in _MAPPING)
            for inner in ast.walk(node)
        )
        return _within(_call("__scope__", True), [node], node) if repeats else node


def _call(name: str, *arguments: int) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), [ast.Constant(argument) for argument in arguments], [])


def _within(manager: ast.Call, body: list[ast.stmt], place: ast.AST) -> ast.With:
    return ast.copy_location(ast.With([ast.withitem(manager)], body), place)


def units_of(test: str) -> list[Unit]:
    """The units of a test; raises SyntaxError."""
    return _Numbering(test, ast.parse(test)).units


def instrument(test: str) -> tuple[ast.Module, set[int]]:
    """The test with its units marked, and the units that count only once the test has run to its end.

    The names of `Course.names` must be defined where it runs.
    """
    tree = ast.parse(test)
    numbers = _Numbering(test, tree).numbers
    repeated = _repeated(tree, numbers)
    return ast.fix_missing_locations(_Instrument(numbers).visit(tree)), repeated


class Course:
    """The course of an instrumented test: which units hold, told to `report` once nothing can take it back.

    Args:
        report: Told of a unit's number, whether it holds, and why not. Failures come at once; a unit that holds within
            something that may be cut off is reported when that has ended.
        describe: Words for an exception.
        repeated: Units that count only once the test has run to its end.
    """

    def __init__(self, report: Report, describe: Callable[[BaseException], str], repeated: Iterable[int]):
        self.report = report
        self.describe = describe
        self.repeated = frozenset(repeated)
        self.held: dict[int, None] = {}
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

    def hold(self, numbers: Iterable[int]) -> None:
        """Units held; what may be cut off keeps them back."""
        if self.scopes:
            self.scopes[-1].held.update(dict.fromkeys(numbers))
            return
        for number in numbers:
            if number in self.repeated:
                self.held[number] = None
            else:
                self.report(number, True, "")

    def finish(self, done: bool) -> None:
        """The test has ended: run through, or cut off."""
        for number in self.held:
            self.report(number, done, "" if done else _CUT_OFF)


class _Unit:
    """`with _Unit(...)`: the assert inside holds or not; either way the test goes on."""

    def __init__(self, course: Course, number: int):
        self.course = course
        self.number = number

    def __enter__(self) -> None:
        for body in self.course.bodies[-1:]:
            body.reached.add(self.number)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            self.course.hold([self.number])
        else:
            self.course.report(self.number, False, self.course.describe(error))
        return True


class _Scope:
    """`with _Scope(...)`: units that hold in the course of what is inside count if that runs to its end."""

    def __init__(self, course: Course, ended: bool):
        self.course = course
        self.ended = ended
        self.held: dict[int, None] = {}

    def __enter__(self) -> None:
        self.course.scopes.append(self)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.course.scopes.pop()
        if self.ended and error is None:
            self.course.hold(self.held)
            return
        for number in self.held:
            self.course.report(number, False, _CUT_OFF)


class _Body:
    """`with _Body(...)`: units of a function that were not reached when an exception ended it do not hold."""

    def __init__(self, course: Course, numbers: tuple[int, ...]):
        self.course = course
        self.numbers = numbers
        self.reached: set[int] = set()

    def __enter__(self) -> None:
        self.course.bodies.append(self)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.course.bodies.pop()
        if error is not None:
            for number in self.numbers:
                if number not in self.reached:
                    self.course.report(number, False, "not reached")
