"""Print the memory that a configuration needs on 1, 2 and 8 devices: collm plan --config FILE"""

from __future__ import annotations

from collm.commands import BASE


def main() -> int:
    """The command."""
    from collm.benchmark.plan import main

    return main(BASE)
