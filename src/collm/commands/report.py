"""Report a study of claims: collm report --study logs/studies/relay --out results/claims/relay"""

from __future__ import annotations

from collm.commands import wants_help


def main() -> int:
    """The command."""
    if wants_help():
        from collm.runtime.quick_help import function_help

        print(function_help("collm.studies.report", "report"))
        return 0
    from collm.studies.report import main

    return main()
