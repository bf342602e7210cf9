"""The assert statements of a test, each counted on its own.

A test is Python text that defines `check(candidate)`, or asserts at its top level. Its units are its assert statements,
wherever they stand: over several lines, in loops, in functions of the test. A unit holds if it was reached and never
failed, so one in a loop holds if it held every time. Asserts of a constant say nothing about the candidate and are no
units; asserts that repeat another one word for word are the same unit.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass


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


class _Instrument(ast.NodeTransformer):
    """Puts every counted assert into `with __unit__(number):`."""

    def __init__(self, numbers: dict[int, int]):
        self.numbers = numbers

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if id(node) not in self.numbers:
            return node
        call = ast.Call(ast.Name("__unit__", ast.Load()), [ast.Constant(self.numbers[id(node)])], [])
        return ast.copy_location(ast.With([ast.withitem(call)], [node]), node)


def units_of(test: str) -> list[Unit]:
    """The units of a test; raises SyntaxError."""
    return _Numbering(test, ast.parse(test)).units


def instrument(test: str) -> ast.Module:
    """The test with its units marked; the name `__unit__` must be defined where it runs."""
    tree = ast.parse(test)
    numbering = _Numbering(test, tree)
    return ast.fix_missing_locations(_Instrument(numbering.numbers).visit(tree))
