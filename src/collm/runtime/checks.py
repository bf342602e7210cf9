"""Allowed ranges of numeric arguments, and one error message for a value outside its range.

A constructor with the decorator `checked` has its ranges in its annotations: `horizon: Count = 4`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from collm.errors import ConfigurationError


@dataclass(frozen=True)
class Range:
    """The allowed values of a numeric argument; no range contains NaN, infinities or booleans.

    Args:
        least: Smallest allowed number.
        most: Largest allowed number.
        above: Exclude `least` itself.
        below: Exclude `most` itself.
        whole: Allow integers only.
        optional: Allow None as well.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    optional: bool = False

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        try:
            if not math.isfinite(value):
                return False
        except OverflowError:  # an integer too large for a float
            return False
        number: Any = value  # numbers.Real declares no comparison with float
        low = number > self.least if self.above else number >= self.least
        return low and (number < self.most if self.below else number <= self.most)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number" if math.isfinite(self.least) else "a finite number"
        if math.isfinite(self.least) and math.isfinite(self.most) and not self.whole:
            kind += f" in {'(' if self.above else '['}{self.least:g}, {self.most:g}{')' if self.below else ']'}"
        elif math.isfinite(self.least):
            kind += f" {'above' if self.above else 'of at least'} {self.least:,}"
            if math.isfinite(self.most):
                kind += f" and at most {self.most:,}"
        return kind + (", or null" if self.optional else "")

    @property
    def or_none(self) -> Range:
        """The same range with None allowed."""
        return replace(self, optional=True)


LARGEST_COUNT = 10**9
COUNT = Range(1, LARGEST_COUNT, whole=True)
COUNT_OR_ZERO = Range(0, LARGEST_COUNT, whole=True)
WHOLE = Range(whole=True)
SEED = Range(0, 2**32 - 1, whole=True)  # the seeds that numpy accepts
FINITE = Range()
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)  # both ends included
SHARE_ABOVE_ZERO = Range(0, 1, above=True)
SHARE_BELOW_ONE = Range(0, 1, below=True)

Count = Annotated[int, COUNT]
CountOrZero = Annotated[int, COUNT_OR_ZERO]
Whole = Annotated[int, WHOLE]
Seed = Annotated[int, SEED]
Finite = Annotated[float, FINITE]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
ShareAboveZero = Annotated[float, SHARE_ABOVE_ZERO]

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def check_number(name: str, value: Any, allowed: Range, remedy: str = "") -> Any:
    """Refuse a `value` that is not in the range `allowed`.

    Args:
        name: Name of the argument, for the message.
        value: The argument's value.
        allowed: The argument's range.
        remedy: A sentence that tells the user what to do, where the range alone does not.

    Returns:
        The value.

    Raises:
        ConfigurationError: Names the argument, its value and the range.
    """
    if value not in allowed:
        raise ConfigurationError(f"{name} is {shown(value)}; it must be {allowed}.{' ' if remedy else ''}{remedy}")
    return value


def check_numbers(prefix: str, owner: object, **ranges: Range) -> None:
    """Check attributes of `owner` against their ranges; messages call an attribute `prefix.attribute`."""
    for name, allowed in ranges.items():
        check_number(f"{prefix}.{name}" if prefix else name, getattr(owner, name), allowed)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> Any:
    """The `value`; raises `ConfigurationError` unless it is one of `choices`."""
    if value not in (known := list(choices)):
        raise ConfigurationError(f"{name} is {shown(value)}; choose one of {', '.join(known)}.")
    return value


def checked(constructor: Constructor) -> Constructor:
    """Decorator of an `__init__` that refuses arguments which their annotations do not allow.

    Numbers are checked where the annotation holds a `Range`, texts against `Literal`, and values of the type bool; each
    may also be None where the annotation says so. The call raises `ConfigurationError` before the body runs. Messages
    name the class, or what its attribute `setting` says.
    """

    @functools.wraps(constructor)
    def check_and_call(self: Any, *args: Any, **kwargs: Any) -> None:
        signature = inspect.signature(constructor, eval_str=True)
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            owner = getattr(self, "setting", type(self).__name__)
            _check_argument(f"{owner}.{name}", value, signature.parameters[name].annotation)
        constructor(self, *args, **kwargs)

    return cast(Constructor, check_and_call)


def _check_argument(name: str, value: Any, annotation: Any) -> None:
    optional = NoneType in get_args(annotation)
    if optional and value is None:
        return
    for kind in get_args(annotation) if optional else [annotation]:
        if get_origin(kind) is Annotated and isinstance(allowed := kind.__metadata__[0], Range):
            check_number(name, value, allowed.or_none if optional else allowed)
        elif get_origin(kind) is Literal:
            check_choice(name, value, get_args(kind))
        elif kind is bool and not isinstance(value, bool):
            raise ConfigurationError(f"{name} is {shown(value)}; give true or false.")


def shown(value: Any, most: int = 100) -> str:
    """`repr(value)`, shortened to `most` characters, for messages."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to print very long integers
        return f"a whole number of about {value.bit_length() * 0.30103:.0f} digits"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def check_utf8(where: str, text: str) -> str:
    """Refuse text that UTF-8 cannot encode: text with half of a surrogate pair, which JSON can contain."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{where}: character {error.start + 1} is the lone surrogate {text[error.start]!a}, which is no text; "
            "remove it, or write both halves of the pair."
        ) from error
    return text
