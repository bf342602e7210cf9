"""Test methods of the module unittest as functions with plain asserts, which the sandbox counts one by one."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping

BINARY: Mapping[str, type[ast.cmpop]] = {
    "assertEqual": ast.Eq,
    "assertEquals": ast.Eq,
    "assertListEqual": ast.Eq,
    "assertDictEqual": ast.Eq,
    "assertNotEqual": ast.NotEq,
    "assertIs": ast.Is,
    "assertIsNot": ast.IsNot,
    "assertIn": ast.In,
    "assertNotIn": ast.NotIn,
    "assertGreater": ast.Gt,
    "assertGreaterEqual": ast.GtE,
    "assertLess": ast.Lt,
    "assertLessEqual": ast.LtE,
}
UNARY = ("assertTrue", "assertFalse", "assertIsNone", "assertIsNotNone")


def test_functions(source: str) -> tuple[str, dict[str, list[str]]]:
    """The import lines of a test module, and the tests of each of its classes: `setUp` and one method each.

    Methods without asserts are left out, and those that need what has no plain form: other asserts of unittest, other
    attributes of the test class, decorators, and what the module defines besides its imports. Raises SyntaxError.
    """
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    others = {name for node in tree.body if node not in imports for name in _defined(node)}
    classes: dict[str, list[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
            prepared = methods["setUp"].body if "setUp" in methods else []
            for name, method in methods.items():
                if name.startswith("test") and not method.decorator_list:
                    plain = plain_asserts([*prepared, *method.body], others)
                    if plain is not None:
                        classes.setdefault(node.name, []).append(plain)
    return "\n".join(map(ast.unparse, imports)), classes


test_functions.__test__ = False  # type: ignore[attr-defined]  # no test of pytest


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]


def plain_asserts(body: list[ast.stmt], others: Iterable[str] = ()) -> str | None:
    """The source of a test with plain asserts, None if there is none or if the test has no plain form.

    Args:
        body: The statements of the test.
        others: Names that the test must not use, because nothing defines them here.
    """
    module = ast.Module([*ast.parse("class _Self: pass\nself = _Self()").body, *body], [])
    try:
        changed = _Asserts().visit(ast.parse(ast.unparse(ast.fix_missing_locations(module))))
        _check_names(changed, {*others, "super"})
    except (KeyError, IndexError):
        return None
    found = any(isinstance(node, ast.Assert) for node in ast.walk(changed))
    return ast.unparse(ast.fix_missing_locations(changed)) if found else None


def _check_names(tree: ast.AST, others: set[str]) -> None:
    """Raise KeyError if a test uses one of `others`, or attributes of `self` that it does not set, such as methods."""
    nodes = list(ast.walk(tree))
    own = [each for each in nodes if isinstance(each, ast.Attribute) and _is_self(each.value)]
    is_set = {each.attr for each in own if isinstance(each.ctx, ast.Store)}
    for name in [each.attr for each in own if each.attr not in is_set]:
        raise KeyError(name)
    names = [each for each in nodes if isinstance(each, ast.Name)]
    is_set = {each.id for each in names if isinstance(each.ctx, ast.Store)}
    for name in [each.id for each in names if each.id in others - is_set]:
        raise KeyError(name)


class _Asserts(ast.NodeTransformer):
    """Replaces calls of `self.assert...`; raises KeyError for unknown forms and IndexError for missing arguments."""

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = node.value
        name = _assert_name(call)
        if name is None or not isinstance(call, ast.Call):
            return node
        known = {"msg", "places"} if name == "assertAlmostEqual" else {"msg"}
        for unknown in [each.arg for each in call.keywords if each.arg not in known]:
            raise KeyError(unknown)
        if any(isinstance(each, ast.Starred) for each in call.args):
            raise KeyError("*")
        if name in UNARY:
            tested = call.args[0]
            if name in ("assertIsNone", "assertIsNotNone"):
                operator = ast.Is() if name == "assertIsNone" else ast.IsNot()
                tested = ast.Compare(tested, [operator], [ast.Constant(None)])
            return ast.Assert(ast.UnaryOp(ast.Not(), tested) if name == "assertFalse" else tested, None)
        if name == "assertAlmostEqual":
            if len(call.args) > 4:
                raise KeyError("delta")
            places = next((each.value for each in call.keywords if each.arg == "places"), None)
            places = call.args[2] if len(call.args) > 2 else places or ast.Constant(7)
            difference = ast.BinOp(call.args[0], ast.Sub(), call.args[1])
            rounded = ast.Call(ast.Name("round", ast.Load()), [difference, places], [])
            return ast.Assert(ast.Compare(rounded, [ast.Eq()], [ast.Constant(0)]), None)
        return ast.Assert(ast.Compare(call.args[0], [BINARY[name]()], [call.args[1]]), None)

    def visit_With(self, node: ast.With) -> ast.stmt | list[ast.stmt]:
        context, name = node.items[0].context_expr, node.items[0].optional_vars
        if name is not None and _assert_name(context):
            raise KeyError("as")
        if len(node.items) != 1 or _assert_name(context) != "assertRaises" or not isinstance(context, ast.Call):
            self.generic_visit(node)
            return node
        raised = ast.parse(
            "_raised = False\ntry:\n    pass\nexcept Exception:\n    _raised = True\nassert _raised"
        ).body
        attempt = raised[1]
        assert isinstance(attempt, ast.Try)
        attempt.body = node.body
        attempt.handlers[0].type = context.args[0]
        return raised


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _assert_name(node: ast.AST) -> str | None:
    """The name of the assert that `node` calls, None if it is something else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("assert"):
        return node.func.attr
    return None
