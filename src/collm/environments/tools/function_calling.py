"""Parallel function calling: several agents share out the calls that one request needs, without talking.

Each agent sees the request and the schemas of the functions, and writes some of the calls; their calls are united. The
requests are those of the Berkeley Function Calling Leaderboard (package bfcl-eval, Apache 2.0) or small ones shipped
with the package. No function is executed. The score is in `collm.environments.tools.matching`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from collm.environments.base import Agents, Environment, Step
from collm.environments.splits import split_rows
from collm.environments.tools.calls import Call, read_calls, written
from collm.environments.tools.data import load_requests
from collm.environments.tools.matching import LEFT_OUT, MAXIMUM, MINIMUM, Expected, score_calls
from collm.errors import ConfigurationError
from collm.runtime.checks import Count, Whole, checked
from collm.trajectory import Task, Trajectory

FORM = "Write one call per line, like name(argument='text', number=3), and nothing else. Write [] for no call."
EXAMPLE = """Functions:
{"name": "set_alarm", "parameters": {"hour": "integer", "label": "string"}}
Request: Wake me at 6 for work and at 9 for a call.
Calls:
set_alarm(hour=6, label='work')
set_alarm(hour=9, label='call')
"""


class FunctionCalling(Environment):
    """Several agents write the function calls of one request, in one turn and without communication.

    The reward is between -0.45 and 1.1: for the right functions and arguments, their number, an even split of the work
    and an exact match, minus calls that several agents write, agents that write none, superfluous and repeated calls.

    Args:
        dataset: "samples" (24 small requests shipped with the package), "bfcl" (from the package bfcl-eval), or a
            .jsonl file with BFCL's fields `id`, `question` and `function`, and its answer as `ground_truth`.
        categories: Categories of "bfcl": parallel, parallel_multiple, live_parallel, live_parallel_multiple.
        num_agents: Number of agents, named caller_1, caller_2, ...; 1 for the single-agent baseline.
        roles: What agents are told about the division of the calls. `self_select`: to contribute a part, so that a
            convention has to form. `split_by_order`: the first agent the first calls, and so on. `odd_even`: every
            `num_agents`th call, beginning at its own number. `same_prompt`: all of them.
        num_train: Number of training requests; null for all that are not held out.
        num_eval: Number of held-out requests.
        seed: Shuffle the requests with this seed before they are split; null keeps their order.
        prompt: `instructions` for models that follow them; `completion` for small models that continue a text (with
            `policy.chat_template: false`): an example first, and `Calls:` at the end.
    """

    horizon = 1
    min_reward, max_reward = MINIMUM, MAXIMUM

    @checked
    def __init__(
        self,
        dataset: str = "samples",
        categories: Sequence[str] = ("parallel", "parallel_multiple"),
        num_agents: Agents = 2,
        roles: Literal["self_select", "split_by_order", "odd_even", "same_prompt"] = "self_select",
        num_train: Count | None = None,
        num_eval: Count = 8,
        seed: Whole | None = 0,
        prompt: Literal["instructions", "completion"] = "instructions",
    ) -> None:
        if isinstance(categories, str) or not categories:
            raise ConfigurationError(f"categories is {categories!r}; give a list of names.")
        self.agent_ids = tuple(f"caller_{index + 1}" for index in range(num_agents))
        self.roles, self.prompt = roles, prompt
        name = type(self).__name__
        load = lambda dataset: load_requests(dataset, categories)  # noqa: E731
        self.splits = split_rows(name, load, dataset, None, num_train, num_eval, seed)

    def reset(self, task: Task, rng: random.Random) -> tuple[Task, dict[str, str]]:
        """Show each agent its part, the schemas and the request."""
        schemas = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in task.data["functions"])
        example, end = (f"\n{EXAMPLE}\n", "\nCalls:") if self.prompt == "completion" else ("", "")
        asked = f"{FORM}\n{example}Functions:\n{schemas}\nRequest: {task.data['request']}{end}"
        return task, {agent_id: f"{self.role(index)} {asked}" for index, agent_id in enumerate(self.agent_ids)}

    def role(self, index: int) -> str:
        """What the agent with this index is told about its part."""
        num = len(self.agent_ids)
        if num == 1 or self.roles == "same_prompt":
            return "Answer the request with function calls, all that it needs."
        told = f"You are caller {index + 1} of {num}; together you answer the request with function calls. "
        if self.roles == "split_by_order":
            return told + f"Cut the calls, in the order of the request, into {num} parts and write part {index + 1}."
        if self.roles == "odd_even":
            own = ", ".join(str(index + 1 + num * turn) for turn in range(3))
            return told + f"Number the calls in the order of the request and write number {own} and so on."
        return told + "Write a part of the calls, not all of them: each is needed once, and the others write the rest."

    def step(self, state: Task, joint_action: Mapping[str, str]) -> Step:
        """Unite the calls and score them."""
        responses = [read_calls(joint_action[agent_id]) for agent_id in self.agent_ids]
        score = score_calls(responses, expected_of(state))
        calls = dict(zip(self.agent_ids, score.num_calls, strict=True))
        info = {"quantities": score.quantities, "calls": calls}
        return Step(state, {}, sum(score.terms.values()), score.terms, terminated=True, info=info)

    def state_features(self, state: Task) -> dict[str, float]:
        """Numbers of expected calls, of different functions, and of characters of the request."""
        data = state.data
        return {
            "calls": len(data["expected"]),
            "functions": len(data["functions"]),
            "request_characters": len(data["request"]),
        }

    def state_text(self, state: Task) -> str:
        """The expected calls."""
        return "\n".join(written(call) for call in self.right_calls(state))

    def right_calls(self, task: Task) -> list[Call]:
        """The expected calls, each with the first accepted values."""
        return [
            Call(
                each.name,
                {name: first_value(values) for name, values in each.arguments.items() if values != [LEFT_OUT]},
            )
            for each in expected_of(task)
        ]

    def demonstrate(self, state: Task, rng: random.Random) -> dict[str, str]:
        """Each agent writes its part of the expected calls: by order, or by turns for `odd_even`."""
        lines, num = [written(call) for call in self.right_calls(state)], len(self.agent_ids)
        sizes = [len(lines) // num + (index < len(lines) % num) for index in range(num)]
        starts = [sum(sizes[:index]) for index in range(num)]
        parts = [
            lines[index::num] if self.roles == "odd_even" else lines[starts[index] : starts[index] + sizes[index]]
            for index in range(num)
        ]
        return {agent_id: "\n".join(part) or "[]" for agent_id, part in zip(self.agent_ids, parts, strict=True)}

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """The quantities of the reward, with `exact_match` for `exact`, and the number of calls of each agent."""
        if not trajectory.turns:
            return {}
        info = trajectory.turns[-1].info
        quantities: dict[str, float] = dict(info["quantities"])
        return {
            "exact_match": quantities.pop("exact"),
            **quantities,
            **{f"calls/{agent_id}": float(number) for agent_id, number in info["calls"].items()},
        }


def expected_of(task: Task) -> list[Expected]:
    """The expected calls of a task."""
    return [Expected(name, arguments) for each in task.data["expected"] for name, arguments in each.items()]


def first_value(values: Sequence[Any]) -> Any:
    """The first accepted value that is not that of an argument left out; of a dict, the first of each key."""
    value = next((value for value in values if value != LEFT_OUT), LEFT_OUT)
    if isinstance(value, Mapping):
        return {name: first_value(each) for name, each in value.items() if each != [LEFT_OUT]}
    return value
