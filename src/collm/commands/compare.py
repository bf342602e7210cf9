"""Compare runs and untrained protocols on the same held-out tasks: collm compare --config FILE"""

from __future__ import annotations

from collm.commands import BASE, wants_help


def main() -> int:
    """The command."""
    if wants_help():
        from collm.runtime.quick_help import function_help

        print(function_help("collm.studies.comparison", "compare"))
        return 0
    from collm.studies.comparison import main

    return main(BASE)
