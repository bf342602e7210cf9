"""The reward of function calls that several agents write for one request.

    R = 0.05 parse + 0.25 names + 0.35 arguments + 0.10 count + 0.15 balance + 0.20 exact
        - 0.20 overlap - 0.15 lazy - 0.05 extra - 0.05 duplicate

All quantities are between 0 and 1. The calls of all agents are united, equal ones counted once (or as often as they are
expected), and matched one to one with the expected calls. An optional argument that is left out counts neither for nor
against a call.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collm.environments.tools.calls import Call, Response

WEIGHTS = {
    "parse": 0.05,
    "names": 0.25,
    "arguments": 0.35,
    "count": 0.10,
    "balance": 0.15,
    "exact": 0.20,
    "overlap": -0.20,
    "lazy": -0.15,
    "extra": -0.05,
    "duplicate": -0.05,
}
MAXIMUM = sum(weight for weight in WEIGHTS.values() if weight > 0)
MINIMUM = sum(weight for weight in WEIGHTS.values() if weight < 0)
IGNORED = re.compile(r"[ ,./\-_*^]")
LEFT_OUT = ""
"""Among the accepted values of an argument: the argument may be left out."""


@dataclass(frozen=True)
class Expected:
    """An expected call.

    Args:
        name: Name of the function.
        arguments: The accepted values of each argument.
    """

    name: str
    arguments: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class CallScore:
    """Quantities of a joint action.

    Args:
        quantities: The quantities of the reward, each in [0, 1].
        num_calls: Number of calls of each agent, repeated ones included.
    """

    quantities: dict[str, float]
    num_calls: tuple[int, ...]

    @property
    def terms(self) -> dict[str, float]:
        """Terms of the reward."""
        return {name: weight * self.quantities[name] for name, weight in WEIGHTS.items()}


def standard(value: Any) -> Any:
    """A text without spaces, case and most punctuation, other values as they are."""
    return IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def equal(given: Any, accepted: Any) -> bool:
    """Whether a value is an accepted one; in a dict, the accepted one has a list of values for each key."""
    if isinstance(accepted, Mapping):
        return isinstance(given, Mapping) and fitting(given, accepted) == (len(given), len(given))
    if isinstance(accepted, list):
        return isinstance(given, list) and len(given) == len(accepted) and all(map(equal, given, accepted))
    if isinstance(given, bool) or isinstance(accepted, bool):
        return given is accepted
    return bool(standard(given) == standard(accepted))


def fitting(given: Mapping[str, Any], accepted: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of arguments that are right, and that are expected or given: left-out optional ones count in neither."""
    right = counted = 0
    for name, values in accepted.items():
        values = values if isinstance(values, list) else [values]
        if name in given:
            counted += 1
            right += any(equal(given[name], value) for value in values)
        elif LEFT_OUT not in values:
            counted += 1
    return right, counted + sum(name not in accepted for name in given)


def similarity(call: Call, expected: Expected) -> float:
    """How well a call fits, in [0, 1]: 0 for another name, 1 if it is right.

    Right arguments out of expected and superfluous ones. A call that is expected without arguments and has some is
    worth 0.7.
    """
    if call.name != expected.name:
        return 0.0
    right, counted = fitting(call.arguments, expected.arguments)
    superfluous = sum(name not in expected.arguments for name in call.arguments)
    if counted == superfluous:
        return 0.7 if superfluous else 1.0
    return right / counted


def match(calls: Sequence[Call], expected: Sequence[Expected]) -> dict[int, tuple[int, float]]:
    """A call and its similarity for each expected call that gets one, by index.

    As many pairs that fit completely as there can be, then the others, the most similar first.
    """
    table = [[similarity(call, each) for call in calls] for each in expected]
    owner: dict[int, int] = {}  # expected call by call

    def place(index: int, tried: set[int]) -> bool:
        """Find a call for an expected one, and another for whom it is taken from."""
        for position, fit in enumerate(table[index]):
            if fit == 1.0 and position not in tried:
                tried.add(position)
                if position not in owner or place(owner[position], tried):
                    owner[position] = index
                    return True
        return False

    for index in range(len(expected)):
        place(index, set())
    found = {index: (position, 1.0) for position, index in owner.items()}
    rest = [(fit, index, position) for index, row in enumerate(table) for position, fit in enumerate(row) if fit]
    for fit, index, position in sorted(rest, key=lambda each: (-each[0], each[1], each[2])):
        if index not in found and position not in owner:
            found[index], owner[position] = (position, fit), index
    return found


def score_calls(responses: Sequence[Response], expected: Sequence[Expected]) -> CallScore:
    """Score one response per agent.

    - parse: share of responses that are nothing but calls.
    - names: F1 of the functions' names.
    - arguments: mean similarity of the expected calls to their matches.
    - count: 1 minus the difference in number, out of the expected calls.
    - balance: likewise, between the numbers of matched calls per agent and an even split; who has one more is free.
    - exact: all calls are right and none is superfluous.
    - overlap: calls that k agents wrote count k - 1, out of the expected calls.
    - lazy: share of agents without a call, beyond those for whom there is none.
    - extra: calls beyond the expected number.
    - duplicate: calls that an agent repeats.
    """
    wanted, num_agents = len(expected), len(responses)
    counts = [Counter(call.key for call in response.calls) for response in responses]
    by_key = {call.key: call for response in responses for call in response.calls}
    # equal calls count once, or as often as they are expected
    most = {key: max(1, sum(similarity(call, each) == 1.0 for each in expected)) for key, call in by_key.items()}
    writers = {
        key: [index for index, own in enumerate(counts) for _ in range(min(own[key], most[key]))] for key in by_key
    }
    united = [(key, index) for key, indices in writers.items() for index in indices[: most[key]]]
    calls = [by_key[key] for key, _ in united]
    matched = match(calls, expected)
    total = sum(fit for _, fit in matched.values())
    names = Counter(call.name for call in calls) & Counter(each.name for each in expected)

    givers = Counter(united[position][1] for position, _ in matched.values())
    shares = sorted((givers[index] for index in range(num_agents)), reverse=True)
    ideal = [wanted // num_agents + (index < wanted % num_agents) for index in range(num_agents)]
    uneven = sum(abs(share - even) for share, even in zip(shares, ideal, strict=True))
    silent = sum(not response.calls for response in responses)
    written = sum(len(indices) for indices in writers.values())
    repeated = sum(len(response.calls) for response in responses) - written
    quantities = {
        "parse": sum(response.valid for response in responses) / num_agents,
        "names": 2 * names.total() / (len(calls) + wanted),
        "arguments": total / wanted,
        "count": max(0.0, 1 - abs(len(calls) - wanted) / wanted),
        "balance": max(0.0, 1 - uneven / wanted),
        "exact": float(len(calls) == wanted and total == wanted),
        "overlap": min(1.0, (written - len(calls)) / wanted),
        "lazy": max(0, silent - max(0, num_agents - wanted)) / num_agents,
        "extra": min(1.0, max(0, len(calls) - wanted) / wanted),
        "duplicate": min(1.0, repeated / wanted),
    }
    return CallScore(quantities, tuple(len(response.calls) for response in responses))
