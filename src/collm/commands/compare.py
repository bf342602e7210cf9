"""Compare runs and untrained protocols on the same held-out tasks: collm compare --config FILE"""

from __future__ import annotations

from collm.commands import BASE, helped


def main() -> int:
    """The command."""
    if helped("collm.studies.comparison", "compare"):
        return 0
    from collm.studies.comparison import main

    return main(BASE)
