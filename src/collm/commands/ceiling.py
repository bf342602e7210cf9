"""Measure how much of the return can be known at each turn: collm ceiling --config FILE --out DIR"""

from __future__ import annotations

from collm.commands import BASE


def main() -> int:
    """The command."""
    from collm.studies.ceiling import main

    return main(BASE)
