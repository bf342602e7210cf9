"""The score of a class whose methods several agents wrote, and the contribution of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from collm.environments.coding.class_program import ClassTest, class_test, merge, read_methods, read_skeleton
from collm.sandbox.case import Case, Verdict
from collm.trajectory import Task

WRITTEN, PASSED, OVERLAP = 2.0, 4.0, -1.0


@dataclass(frozen=True)
class ClassScore:
    """Score of a joint action.

    Args:
        terms: Terms of the reward.
        passed: Passed and scored tests by method.
        written: Methods that were written, by agent id.
        contributions: Share of the scored tests that fail without the methods of an agent, by agent id.
        error: Why the program does not load; else empty.
    """

    terms: Mapping[str, float]
    passed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    contributions: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def total(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())

    @property
    def num_passed(self) -> tuple[int, int]:
        """Numbers of passed and of scored tests."""
        return sum(passed for passed, _ in self.passed.values()), sum(total for _, total in self.passed.values())


class Team:
    """The methods that a team wrote for one class.

    Args:
        task: The class.
        dealt: Methods to write, by agent id.
        joint_action: The responses, by agent id.
    """

    def __init__(self, task: Task, dealt: Mapping[str, tuple[str, ...]], joint_action: Mapping[str, str]) -> None:
        self.skeleton = read_skeleton(task.data["skeleton"])
        self.dealt = dealt
        self.tests: ClassTest = class_test(self.skeleton.class_name, task.data["tests"], task.data["imports"])
        self.read = {agent_id: read_methods(joint_action[agent_id], self.skeleton) for agent_id in dealt}

    def cases(self, contributions: bool) -> dict[str, Case]:
        """The programs to test, by what is left out: "nothing", "everything", or an agent id."""
        left_out: dict[str, tuple[str, ...]] = {"nothing": (), "everything": tuple(self.dealt)}
        if contributions and len(self.dealt) > 1:
            left_out |= {agent_id: (agent_id,) for agent_id, own in self.dealt.items() if own}
        return {
            name: self.tests.case(self.program(without), self.skeleton.class_name) for name, without in left_out.items()
        }

    def program(self, without: Sequence[str]) -> str:
        """The class without the methods of some agents."""
        methods: dict[str, str] = {}
        imports: list[str] = []
        for agent_id, own in self.dealt.items():
            if agent_id not in without:
                methods |= {name: source for name, source in self.read[agent_id].sources.items() if name in own}
                imports += self.read[agent_id].imports
        return merge(self.skeleton, methods, imports)

    def score(self, verdicts: Mapping[str, Verdict]) -> ClassScore:
        """The score, given the verdict on each of `cases`."""
        outcomes = {name: self.tests.passed(verdict) for name, verdict in verdicts.items()}
        joint, empty = outcomes["nothing"], outcomes["everything"]
        scored = [index for index, passes in enumerate(empty) if not passes]
        passed: dict[str, tuple[int, int]] = {}
        for index in scored:
            good, total = passed.get(self.tests.methods[index], (0, 0))
            passed[self.tests.methods[index]] = (good + joint[index], total + 1)
        written = {
            agent_id: tuple(name for name in own if name in self.read[agent_id].sources)
            for agent_id, own in self.dealt.items()
        }
        num = len(self.skeleton.stubs)
        writers = [sum(name in read.sources for read in self.read.values()) for name in self.skeleton.stubs]
        share = sum(joint[index] for index in scored) / max(1, len(scored))
        return ClassScore(
            {
                "written": WRITTEN * sum(map(len, written.values())) / num,
                "tests": PASSED * share,
                "overlap": OVERLAP * sum(count > 1 for count in writers) / num,
            },
            passed,
            written,
            {
                agent_id: share - sum(outcomes[agent_id][index] for index in scored) / max(1, len(scored))
                for agent_id in self.dealt
                if agent_id in outcomes
            },
            verdicts["nothing"].error if not verdicts["nothing"].loaded else "",
        )
