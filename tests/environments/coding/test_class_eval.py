"""Classes that several agents write: scores worked by hand, contributions, and what is read out of responses."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from collm.environments.coding.class_eval import ClassEval, ClassState
from collm.environments.coding.class_program import class_test, merge, read_methods, read_skeleton
from collm.environments.coding.unit_tests import test_functions as functions_of
from collm.errors import ConfigurationError
from collm.sandbox.pool import Sandbox
from collm.trajectory import Action, Trajectory, Turn

PUSH = "def push(self, item):\n    self.items.append(item)\n    return len(self.items)\n"
LARGEST = "def largest(self):\n    return max(self.items, default=None)\n"
POP = "def pop(self):\n    return self.items.pop()\n"
TURN = "def turn(self):\n    self.items.reverse()\n    return list(self.items)\n"

NO_PUSH = (1.5, 4 * 5 / 6, 0, 1 / 3, 1 / 2)

# The class Stack of the samples: coder_1 writes push and largest, coder_2 pop and turn. Six tests: one of push, two of
# pop (the top item, and an IndexError), two of largest, one of turn, which also calls pop.
# Responses, then written (2 x share of 4 methods), tests (4 x share of 6 tests), overlap, contributions of both.
CASES: dict[str, tuple[str, str, float, float, float, float, float]] = {
    "everything right": (PUSH + LARGEST, POP + TURN, 2, 4, 0, 1 / 2, 1 / 2),
    "nobody writes": ("", "", 0, 0, 0, 0, 0),
    "the first half": (PUSH + LARGEST, "I refuse.", 1, 2, 0, 1 / 2, 0),
    "the second half": ("", POP + TURN, 1, 2, 0, 0, 1 / 2),
    # turn's test calls pop: without it one of push, largest, largest; with turn alone it fails
    "turn without pop": (PUSH + LARGEST, TURN, 1.5, 2, 0, 1 / 2, 0),
    # the top item is wrong, so is turn's second assert; the IndexError is right
    "pop takes the bottom item": (PUSH + LARGEST, POP.replace("pop()", "pop(0)") + TURN, 2, 4 * 4 / 6, 0, 1 / 2, 1 / 6),
    # pop and turn have two writers
    "the first agent writes everything": (PUSH + LARGEST + POP + TURN, POP + TURN, 2, 4, -0.5, 1 / 2, 1 / 2),
    "the first agent writes the other's methods only": (POP + TURN, "", 0, 0, 0, 0, 0),
    "a method that does not parse": ("def push(self, item:\n    return 1\n\n" + LARGEST, POP + TURN, *NO_PUSH),
    "a class in a fence, with prose": (
        "Sure!\n```python\nclass Stack:\n    " + (PUSH + LARGEST).replace("\n", "\n    ") + "\n```\nDone.",
        "Here:\n```\n" + POP + TURN + "```",
        *(2, 4, 0, 1 / 2, 1 / 2),
    ),
    "empty methods are not written": ("def push(self, item):\n    pass\n" + LARGEST, POP + TURN, *NO_PUSH),
    "an endless loop costs its own tests": (
        PUSH.replace("return", "while 1: 0\n    return") + LARGEST,
        POP + TURN,
        *(2, *NO_PUSH[1:]),
    ),
    "a crash costs its own tests": (
        "import os\n" + PUSH.replace("return", "os._exit(0)\n    return") + LARGEST,
        POP + TURN,
        *(2, *NO_PUSH[1:]),
    ),
    "an import that fails loses all tests": ("import nothing_here\n" + PUSH + LARGEST, POP + TURN, 2, 0, 0, -1 / 2, 0),
    "an object that equals everything": (
        PUSH + "def largest(self):\n    return type('E', (), {'__eq__': lambda a, b: True})()\n",
        POP + TURN,
        *(2, 4 * 4 / 6, 0, 1 / 6, 1 / 2),
    ),
    "code at the top level is dropped": (
        PUSH + LARGEST + "\nprint('passed')\nimport sys\nsys.exit(0)\n",
        POP + TURN,
        *(2, 4, 0, 1 / 2, 1 / 2),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(workers=2, call_seconds=2.0)
    yield made
    made.close()


def start(game: ClassEval, task_id: str) -> Any:
    (task,) = [task for split in ("train", "eval") for task in game.tasks(split) if task.task_id == task_id]
    return game.reset(task, random.Random(0))


@pytest.mark.parametrize("case", CASES)
def test_scores_by_hand(sandbox: Sandbox, case: str) -> None:
    first, second, written, tests, overlap, *contributions = CASES[case]
    game = ClassEval(sandbox=sandbox)
    state, _ = start(game, "samples/1")
    step = game.step(state, {"coder_1": first, "coder_2": second})
    assert step.terms == pytest.approx({"written": written, "tests": tests, "overlap": overlap})
    assert step.reward == pytest.approx(written + tests + overlap)
    assert list(step.info["contributions"].values()) == pytest.approx(contributions)


@pytest.mark.parametrize("num_agents", [1, 3])
def test_the_solutions_of_all_samples_earn_the_most(sandbox: Sandbox, num_agents: int) -> None:
    game = ClassEval(num_agents=num_agents, sandbox=sandbox, contributions=False)
    states = [game.reset(task, random.Random(0))[0] for split in ("train", "eval") for task in game.tasks(split)]
    steps = game.step_batch(states, [game.demonstrate(state, random.Random(0)) for state in states])
    assert [step.reward for step in steps] == [6.0] * 8
    assert all(
        step.info["passed"][0] == len(state.task.data["tests"]) for step, state in zip(steps, states, strict=True)
    )


def test_agents_see_the_class_and_their_own_methods(sandbox: Sandbox) -> None:
    state, shown = start(ClassEval(sandbox=sandbox), "samples/1")
    assert shown["coder_1"].startswith('class Stack:\n    """A stack of numbers."""')
    assert "Write these methods of Stack: push, largest. Others write the other methods." in shown["coder_1"]
    game = ClassEval(sandbox=sandbox, deal="blocks", num_agents=3)
    skeleton = read_skeleton(state.task.data["skeleton"])
    assert game.dealt(skeleton) == {"coder_1": ("push", "pop"), "coder_2": ("largest",), "coder_3": ("turn",)}
    many = ClassEval(sandbox=sandbox, num_agents=5)
    assert "written by others" in start(many, "samples/1")[1]["coder_5"]


def test_a_second_turn_after_feedback(sandbox: Sandbox) -> None:
    game = ClassEval(sandbox=sandbox, horizon=2, reward_density="sparse", termination_score=5.9)
    state, _ = start(game, "samples/1")
    assert (game.state_text(state), game.progress(state)) == ("no methods yet", 0.0)
    step = game.step(state, {"coder_1": PUSH, "coder_2": POP + TURN})
    assert step.observations == {
        "coder_1": "push: 1 of 1 tests pass.\nlargest: 0 of 2 tests pass.\nWrite all of your methods again, improved.",
        "coder_2": "pop: 2 of 2 tests pass.\nturn: 1 of 1 tests pass.\nWrite all of your methods again, improved.",
    }
    assert (step.reward, step.terminated) == (0.0, False)
    assert game.state_features(step.state) == {
        **{"methods": 4, "tests": 6, "written": 3},
        **{"passed_share": pytest.approx(4 / 6), "score": pytest.approx(1.5 + 4 * 4 / 6)},
    }
    assert game.state_text(step.state) == (
        "tests that pass: push 1 of 1, pop 2 of 2, largest 0 of 2, turn 1 of 1; score 4.17 of 6.00"
    )
    assert ">largest: □□<" in game.render_turn(step.state)
    last = game.step(step.state, {"coder_1": PUSH + LARGEST, "coder_2": POP + TURN})
    assert (last.reward, last.terminated, last.observations) == (6.0, True, {})
    trajectory = Trajectory(state.task, 0, 2, game.max_reward)
    trajectory.turns.append(Turn({}, {"coder_1": Action("")}, last.reward, last.terms, last.info))
    assert game.metrics(trajectory) == {
        **{"score": 6.0, "pass_rate": 1.0, "pass": 1.0, "written": 1.0},
        **{"contribution/coder_1": 0.5, "contribution/coder_2": 0.5},
    }
    assert game.feature_names == tuple(game.state_features(ClassState(state.task)))


def test_tests_that_an_empty_class_passes_do_not_count(sandbox: Sandbox, tmp_path: Path) -> None:
    row = {
        "task_id": "a",
        "skeleton": "class A:\n    def f(self): ...\n    def g(self):\n        raise NotImplementedError('g')\n",
        "tests": {"f": ["assert A().f() is None", "assert A().f() != 1"], "g": ["assert A().g() == 2"]},
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**row, "task_id": name}) + "\n" for name in "ab"))
    with pytest.raises(ConfigurationError, match="held-out row 'b' is the same as 'a'"):
        ClassEval(str(path), num_eval=1, sandbox=sandbox)
    other = {**row, "task_id": "b", "skeleton": row["skeleton"] + "\nX = 1\n"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    game = ClassEval(str(path), num_eval=1, sandbox=sandbox)
    state, _ = start(game, "a")
    assert game.step(state, {"coder_1": "", "coder_2": ""}).reward == 0.0
    step = game.step(state, {"coder_1": "", "coder_2": "def g(self): return 2"})
    assert (step.info["passed"], step.reward) == ((1, 1), 1.0 + 4.0)
    with pytest.raises(ConfigurationError, match="a: the data hold no solution"):
        game.demonstrate(state, random.Random(0))


# Reading


SKELETON = read_skeleton(
    "class A:\n    @staticmethod\n    def f(x):\n        pass\n    def g(self):\n        '''Doc'''\n"
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def f(x):\n    return 1\n@staticmethod\ndef g(self):\n    return 2", ["f", "g"]),
        ("    def f(x):\n        return 1\n\n    def g(self):\n        return 2", ["f", "g"]),
        ("async def f(x): return 1", ["f"]),
        ("def f(x): return 1; y = 2", ["f"]),
        ("def h(x): return 1", []),
        ("class B:\n    def f(x): return 1", []),
        ("class A:\n    def f(x): return 1\n    x = 3", ["f"]),
        ("f = lambda x: 1", []),
        ("def f(x):\n  def g(self): return 2\n  return g", ["f"]),
        ("\x00", []),
        ("(" * 9000, []),
        ("def f(x):\n    return 'é' + '''\nabc'''", ["f"]),
    ],
)
def test_methods_in_responses(text: str, names: list[str]) -> None:
    assert sorted(read_methods(text, SKELETON).sources) == names


TEXT_OF_TWO_LINES = 'return """a\n  b\n\n""" + f\'\'\'{x}\nc\'\'\' + (\n"d")'


@pytest.mark.parametrize("in_class", [False, True])
def test_strings_of_several_lines_stay_as_they_are(in_class: bool) -> None:
    written = f"def f(x):\n    {TEXT_OF_TWO_LINES}\n"
    if in_class:
        written = f"class A:\n    def f(x):\n        {TEXT_OF_TWO_LINES}\n"
    methods = read_methods(written, SKELETON)
    space: dict[str, Any] = {}
    exec(merge(SKELETON, methods.sources, methods.imports), space)
    assert space["A"].f(1) == "a\n  b\n\n1\ncd"
    test = class_test("A", [("f", 'x = """a\n  b"""\nassert A.f(1) == x + """\n\n1\ncd"""')])
    exec(test.source, space)
    space["test_0"](space["A"])


def test_decorators_are_those_of_the_skeleton() -> None:
    found = read_methods("@property\n@wrong\ndef f(x):\n    return 1", SKELETON)
    assert found.sources == {"f": "def f(x):\n    return 1"}


# Each has a plain form but for one line. A right solution would fail it if that line stayed or became something else.
WITHOUT_PLAIN_FORM = [
    "with self.assertRaises(ValueError) as raised:\n            A().f('x')\n        self.assertTrue(raised)",
    "with self.assertRaises(ValueError), open('x'):\n            A().f('x')",
    "with self.subTest(i=1):\n            self.assertTrue(A().f(1))",
    "self.assertAlmostEqual(A().f(1), 4, delta=0.5)",
    "self.assertAlmostEqual(A().f(1), 4, None, 'message', 0.5)",
    "self.assertEqual(first=A().f(1), second=4)",
    "self.assertEqual(*A().f(1), *A().g())",
    "self.assertTrue(**A().f(1))",
    "self.helper(A())",
    "self.assertEqual(A().f(1), self.EXPECTED)",
    "self.assertEqual(A().f(1), EXPECTED)",
    "self.assertEqual(A().f(1), expected())",
    "x = self.assertEqual(A().f(1), 4)",
    "super().setUp()",
]


@pytest.mark.parametrize("line", WITHOUT_PLAIN_FORM)
def test_a_test_without_a_plain_form_is_left_out(line: str) -> None:
    module = (
        "EXPECTED = 4\ndef expected():\n    return 4\n"
        "class ATest(unittest.TestCase):\n    EXPECTED = 4\n    def helper(self, a):\n        pass\n"
        f"    def test_1(self):\n        {line}\n        self.assertTrue(A().g())\n"
        "    @patch('A.f')\n    def test_2(self, patched):\n        self.assertTrue(A().g())\n"
        "    def test_3(self):\n        self.new = EXPECTED = A\n        self.assertEqual(self.new().g(), EXPECTED)\n"
    )
    _, classes = functions_of(module)
    (source,) = classes["ATest"]  # the third has one, as it sets what it uses
    assert source.endswith("self.new = EXPECTED = A\nassert self.new().g() == EXPECTED")


UNITTEST = """
import unittest

class ATestF(unittest.TestCase):
    def setUp(self):
        self.a = A(3)
    def test_1(self):
        self.assertEqual(self.a.f(1), 4)
        self.assertTrue(self.a.g())
        self.assertIsNone(self.a.h(), 'message')
    def test_2(self):
        with self.assertRaises(ValueError):
            self.a.f('x')
        self.assertAlmostEqual(self.a.f(0.1), 3.1)
    def test_3(self):
        self.assertRegex('a', 'a')

class ATestG(unittest.TestCase):
    def test_1(self):
        for i in range(2):
            self.assertNotIn(i, A(i).k)
"""


def test_tests_of_unittest_become_plain_asserts() -> None:
    imports, classes = functions_of(UNITTEST)
    assert imports == "import unittest"
    assert [len(tests) for tests in classes.values()] == [2, 1]  # assertRegex has no plain form
    assert list(classes) == ["ATestF", "ATestG"]
    first, second = classes["ATestF"]
    asserts = [line.strip() for line in first.splitlines() if line.strip().startswith("assert")]
    assert asserts == ["assert self.a.f(1) == 4", "assert self.a.g()", "assert self.a.h() is None"]
    assert "except ValueError:\n    _raised = True\nassert _raised\nassert round(self.a.f(0.1) - 3.1, 7) == 0" in second


def test_a_row_of_class_eval_is_played(sandbox: Sandbox, tmp_path: Path) -> None:
    """A row in the form of the hub's data set."""
    row = {
        "task_id": "ClassEval_0",
        "skeleton": "import math\nclass A:\n    def __init__(self, x):\n        self.x = x\n        self.k = [9]\n"
        "    def f(self, y):\n        'Add.'\n    def g(self):\n        'True.'\n    def h(self):\n        'None.'\n",
        "test": UNITTEST,
        "methods_info": [{"test_class": "ATestF", "method_name": "f"}, {"test_class": "ATestG", "method_name": "g"}],
        "solution_code": "class A:\n    def f(self, y):\n        if isinstance(y, str):\n            raise ValueError\n"
        "        return self.x + y\n    def g(self):\n        return True\n    def h(self):\n        x = 1\n",
    }
    path = tmp_path / "rows.jsonl"
    rows = [{**row, "task_id": name, "skeleton": row["skeleton"] + f"X = '{name}'\n"} for name in "ab"]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    game = ClassEval(str(path), num_eval=1, sandbox=sandbox)
    state, _ = start(game, "a")
    step = game.step(state, game.demonstrate(state, random.Random(0)))
    # `k` is there without any method, so that its test does not count
    assert (step.info["passed"], step.reward) == ((2, 2), 6.0)


def hub_row(name: str) -> dict[str, Any]:
    """A row with every field of FudanSELab/ClassEval in its type, about a class of our own."""
    start = f'import datetime\n\nclass {name}:\n    """\n    This class keeps dates.\n    """\n'
    constructor = "    def __init__(self):\n        pass\n"
    described = {
        "later": 'def later(self, day, days):\n        """\n        Days after a day.\n        """',
        "weekend": 'def weekend(self, day):\n        """\n        Whether it is one.\n        """',
    }
    written = {
        "later": "def later(self, day, days):\n        return str(self.read(day) + datetime.timedelta(days=days))",
        "weekend": "def weekend(self, day):\n        return self.read(day).weekday() > 4",
    }
    read = "    def read(self, day):\n        return datetime.date.fromisoformat(day)\n"
    tests = {
        "later": f"class {name}TestLater(unittest.TestCase):\n    def test_later_1(self):\n        dates = {name}()\n"
        "        self.assertEqual(dates.later('2024-02-28', 1), str(datetime.date(2024, 2, 29)))\n\n"
        f"    def test_later_2(self):\n        self.assertEqual({name}().later('2023-12-31', 1), '2024-01-01')\n",
        "weekend": f"class {name}TestWeekend(unittest.TestCase):\n    def setUp(self):\n"
        f"        self.dates = {name}()\n\n"
        "    def test_weekend_1(self):\n        self.assertTrue(self.dates.weekend('2024-06-01'))\n\n"
        "    def test_weekend_2(self):\n        self.dates.weekend('2024-06-01')\n",
    }
    whole = f"class {name}Test(unittest.TestCase):\n    def test_{name}(self):\n        dates = {name}()\n"
    whole += "        self.assertFalse(dates.weekend(dates.later('2024-06-01', 2)))\n"
    needs = {
        "Standalone": False,
        "lib_dependencies": ["datetime"],
        "field_dependencies": [],
        "method_dependencies": ["read"],
    }
    return {
        "task_id": f"ClassEval_{name}",
        "skeleton": start + constructor + read + "".join(f"\n    {text}\n" for text in described.values()),
        "test": "import unittest\n\n\n" + "\n\n".join([*tests.values(), whole]),
        "solution_code": start + constructor + read + "".join(f"\n    {text}\n" for text in written.values()),
        "import_statement": ["import datetime", "import no_such_package"],
        "class_description": '    """\n    This class keeps dates.\n    """\n',
        "methods_info": [
            {
                "method_name": method,
                "method_description": described[method],
                "test_class": f"{name}Test{method.title()}",
                "test_code": tests[method],
                "solution_code": written[method],
                "dependencies": needs,
            }
            for method in written
        ]
        + [{"method_name": "__init__", "test_class": f"{name}Test"}],
        "class_name": name,
        "test_classes": [f"{name}TestLater", f"{name}TestWeekend", f"{name}Test"],
        "class_constructor": f"class {name}: \n" + constructor + "\n",
        "fields": [],
    }


def test_the_columns_of_the_hub_are_read(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*args: str, **options: str) -> list[dict[str, Any]]:
        asked.append((args, options))
        return [hub_row("Dates"), hub_row("Days")]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    game = ClassEval("FudanSELab/ClassEval", num_eval=1, sandbox=sandbox)
    assert asked == [(("FudanSELab/ClassEval",), {"split": "test"})]
    state, shown = start(game, "ClassEval_Dates")
    assert "Write these methods of Dates: later." in shown["coder_1"]  # and not `__init__`, which is complete
    assert "Write these methods of Dates: weekend." in shown["coder_2"]
    assert [name for name, _ in state.task.data["tests"]] == ["later", "later", "weekend", ""]
    step = game.step(state, game.demonstrate(state, random.Random(0)))
    # the test of the whole class does not count: an empty one, whose methods return None, passes it
    assert (step.info["passed"], step.reward, step.info["error"]) == ((3, 3), 6.0, "")
    step = game.step(state, {"coder_1": "", "coder_2": "def weekend(self, day):\n    return True"})
    assert step.info["passed"] == (1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_id": None}, "line 1: the field 'task_id' must be text"),
        ({"skeleton": " "}, "the field 'skeleton' must be text"),
        ({"skeleton": "def f(): pass"}, "no class to fill in .there is no class"),
        ({"skeleton": "class A:\n    def f(self):\n        return 1"}, "the class A has no method without a body"),
        ({"skeleton": "class A:\n  def"}, "no class to fill in"),
        ({"tests": None, "test": "import unittest", "import_statement": "import os"}, "must be a list of texts"),
        ({"tests": None}, "there is no field `tests`, and no field `test`"),
        ({"tests": {}}, "`tests` must hold a list of sources"),
        ({"tests": {"g": ["assert A().f() == 1"]}}, r"tests of \['g'\], but the methods to fill in are \['f'\]"),
        ({"tests": {"f": ["A().f()"]}}, "test 1 has no assert that is its own"),
        ({"tests": {"f": ["assert A("]}}, "the tests cannot be read"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"task_id": "a", "skeleton": "class A:\n    def f(self): pass\n", "tests": {"f": ["assert A().f() == 1"]}}
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**row, **change}) + "\n")
    with pytest.raises(ConfigurationError, match=message):
        ClassEval(str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deal": "all"}, "deal is 'all'; choose one of in_turn, blocks"),
        ({"feedback": "full"}, "feedback is 'full'"),
        ({"num_eval": 9}, r"ask for more rows than there are \(8 in 'samples'\)"),
        ({"horizon": 0}, "horizon is 0"),
        ({"termination_score": "high"}, "termination_score is 'high'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ClassEval(**settings)


def test_the_lines_of_a_test_are_its_own() -> None:
    test = class_test("A", [("f", "assert A().f() == 1\nassert A().f() != 2"), ("g", "a = A()\nassert a.g()")])
    lines = test.source.splitlines()
    assert [lines[first - 1 : last] for first, last in test.spans] == [
        ["    assert A().f() == 1", "    assert A().f() != 2"],
        ["    a = A()", "    assert a.g()"],
    ]
