"""Print the memory that a configuration needs on 1, 2 and 8 devices: collm plan --config FILE"""

from __future__ import annotations

from collm.commands import BASE, wants_help


def main() -> int:
    """The command."""
    if wants_help():
        from collm.benchmark.options import plan_parser

        plan_parser().print_help()
        return 0
    from collm.benchmark.plan import main

    return main(BASE)
