"""The same as validate, under the name that Lightning gives to the last evaluation: collm test --config ..."""

from __future__ import annotations

from collm.commands.fit import run


def main() -> int:
    """The command."""
    return run("test")
