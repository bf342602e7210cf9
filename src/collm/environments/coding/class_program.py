"""Classes whose methods several agents write: skeletons, methods in responses, merged programs and their tests.

A test is trusted source that makes objects of the class and asserts things about them. It runs in the sandbox's judge
with a stand-in for the class, whose calls reach the object in the program's own process, so programs see arguments and
nothing else of the tests. Arguments and results must be plain data.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from collm.environments.coding.program import DEFINITIONS, Definition, parse, read_source
from collm.sandbox.asserts import units_of
from collm.sandbox.case import Case, Verdict

DRIVER = "collm_call"
_PROGRAM_END = """
_collm_objects = []
def collm_call(kind, handle, name, args, keywords):
    owner = {class_name} if handle is None else _collm_objects[handle]
    if kind == "new":
        _collm_objects.append({class_name}(*args, **keywords))
        return len(_collm_objects) - 1
    if kind == "set":
        return setattr(owner, name, *args)
    value = getattr(owner, name)
    if kind == "call":
        return value(*args, **keywords)
    return [True, None] if callable(value) else [False, value]
"""
_PRELUDE = '''
def stand_in(candidate):
    """A class whose objects live in the program's process."""
    def read(handle, name):
        is_method, value = candidate("get", handle, name, [], {})
        if is_method:
            return lambda *args, **keywords: candidate("call", handle, name, list(args), keywords)
        return value
    class Meta(type):
        def __getattr__(cls, name):
            return read(None, name)
    class StandIn(metaclass=Meta):
        def __init__(self, *args, **keywords):
            object.__setattr__(self, "_handle", candidate("new", None, "", list(args), keywords))
        def __getattr__(self, name):
            return read(self._handle, name)
        def __setattr__(self, name, value):
            candidate("set", self._handle, name, [value], {})
        def __len__(self):
            return candidate("call", self._handle, "__len__", [], {})
        def __str__(self):
            return candidate("call", self._handle, "__str__", [], {})
        def __contains__(self, item):
            return candidate("call", self._handle, "__contains__", [item], {})
        def __getitem__(self, key):
            return candidate("call", self._handle, "__getitem__", [key], {})
    return StandIn
'''


@dataclass(frozen=True)
class Skeleton:
    """A class with methods to fill in.

    Args:
        source: The complete source.
        class_name: Name of the class, the first one of the source.
        stubs: The methods to fill in, in their order.
    """

    source: str
    class_name: str
    stubs: Mapping[str, Definition]


def read_skeleton(source: str) -> Skeleton:
    """The skeleton in `source`; raises SyntaxError if there is no class, or no method to fill in."""
    classes = [each.node for each in parse(source) if isinstance(each.node, ast.ClassDef)]
    if not classes:
        raise SyntaxError("there is no class")
    methods = [node for node in classes[0].body if isinstance(node, DEFINITIONS) and is_stub(node)]
    # a constructor that does nothing is complete
    stubs = {node.name: node for node in methods if node.name != "__init__" or not isinstance(node.body[-1], ast.Pass)}
    if not stubs:
        raise SyntaxError(f"the class {classes[0].name} has no method without a body")
    return Skeleton(source, classes[0].name, stubs)


def is_stub(node: Definition) -> bool:
    """Whether the body is nothing but a docstring, `pass`, `...` or a NotImplementedError."""
    for statement in node.body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        raised = statement.exc if isinstance(statement, ast.Raise) else None
        raised = raised.func if isinstance(raised, ast.Call) else raised
        is_raise = isinstance(raised, ast.Name) and raised.id == "NotImplementedError"
        if not (is_text or is_raise or isinstance(statement, ast.Pass)):
            return False
    return True


@dataclass(frozen=True)
class Methods:
    """What a response holds.

    Args:
        sources: Source of each method, without decorators and not indented.
        imports: Import statements.
    """

    sources: Mapping[str, str]
    imports: tuple[str, ...]


def read_methods(text: str, skeleton: Skeleton) -> Methods:
    """The methods of the class in a response, at its top level or in a class of that name; never raises."""
    source = read_source(text)
    found: dict[str, str] = {}
    imports = []
    for statement in source.statements:
        node = statement.node
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(statement.text.strip())
        is_class = isinstance(node, ast.ClassDef) and node.name == skeleton.class_name
        for each in node.body if isinstance(node, ast.ClassDef) and is_class else [node]:
            # positions are those in the statement's own parse
            if isinstance(each, DEFINITIONS) and each.name in skeleton.stubs and not is_stub(each):
                extracted = extract(statement.text, each.name, is_class)
                if extracted:
                    found[each.name] = extracted
    return Methods(found, tuple(imports))


def extract(text: str, name: str, in_class: bool) -> str | None:
    """The source of the last function called `name` in a statement, dedented and without decorators."""
    try:
        tree = ast.parse(text).body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    nodes = tree.body if in_class and isinstance(tree, ast.ClassDef) else [tree]
    node = [each for each in nodes if isinstance(each, DEFINITIONS) and each.name == name][-1]
    assert node.end_lineno is not None
    lines = text.split("\n")
    indent = node.col_offset
    for number in set(range(node.lineno, node.end_lineno + 1)) - inside_strings(node):
        line = lines[number - 1]
        lines[number - 1] = line.lstrip() if line[:indent].strip() else line[indent:]
    function = "\n".join(lines[node.lineno - 1 : node.end_lineno])
    try:
        parsed = ast.parse(function).body
    except SyntaxError:
        return None
    return function if len(parsed) == 1 else None  # nothing behind a semicolon


def inside_strings(tree: ast.AST) -> set[int]:
    """Numbers of the lines that begin inside a string, so that blanks before them belong to it."""
    found: set[int] = set()
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))):
            found.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
        else:  # before Python 3.12, positions inside an f-string are not those of the source
            left.extend(ast.iter_child_nodes(node))
    return found


def indented(source: str, indent: int) -> list[str]:
    """The lines of a source with blanks before them, except where they would become part of a string."""
    inside = inside_strings(ast.parse(source))
    lines = enumerate(source.split("\n"), start=1)
    return [line if number in inside or not line.strip() else " " * indent + line for number, line in lines]


def merge(skeleton: Skeleton, methods: Mapping[str, str], imports: Iterable[str]) -> str:
    """The program: imports, and the skeleton with `methods` in place of its stubs."""
    lines = skeleton.source.split("\n")
    for name, node in sorted(skeleton.stubs.items(), key=lambda each: -each[1].lineno):
        if name in methods:
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = indented(methods[name], node.col_offset)
    return "\n".join([*dict.fromkeys(imports), *lines])


@dataclass(frozen=True)
class ClassTest:
    """The tests of a class as one test of the sandbox.

    Args:
        source: Source that defines `check(candidate)`.
        prelude: Source that runs before it.
        methods: Method that each test is about, in the order of the tests.
        spans: First and last line of each test.
    """

    source: str
    prelude: str
    methods: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def case(self, program: str, class_name: str) -> Case:
        """The program with these tests."""
        return Case(program + _PROGRAM_END.format(class_name=class_name), DRIVER, self.source, self.prelude)

    def passed(self, verdict: Verdict) -> tuple[bool, ...]:
        """Whether each test passed: all of its asserts hold."""
        outcomes = []
        for first, last in self.spans:
            units = [unit for unit in verdict.units if first <= unit.line <= last]
            outcomes.append(bool(units) and all(unit.passed for unit in units))
        return tuple(outcomes)


def class_test(class_name: str, tests: Sequence[tuple[str, str]], imports: str = "") -> ClassTest:
    """The test that consists of `tests`: pairs of a method's name and source with asserts.

    Lines of `imports` whose package is not installed cost only the tests that use it.

    Raises:
        SyntaxError: A test does not parse, or has no assert of its own about the class.
    """
    lines: list[str] = []
    spans = []
    for number, (_, source) in enumerate(tests):
        lines.append(f"def test_{number}({class_name}):")
        first = len(lines) + 1
        lines += indented(source.strip("\n"), 4)
        spans.append((first, len(lines)))
    lines.append("def check(candidate):")
    lines.append("    tested = stand_in(candidate)")
    for number in range(len(tests)):
        lines += ["    try:", f"        test_{number}(tested)", "    except Exception:", "        pass"]
    text = "\n".join(lines) + "\n"
    units = [unit.line for unit in units_of(text)]
    for number, (first, last) in enumerate(spans):
        if not any(first <= line <= last for line in units):
            raise SyntaxError(f"test {number + 1} has no assert that is its own")
    prelude = [f"try:\n    {line}\nexcept ImportError:\n    pass" for line in imports.splitlines()]
    return ClassTest(text, "\n".join([*prelude, _PRELUDE]), tuple(method for method, _ in tests), tuple(spans))
