"""Report a study of claims: collm report --study logs/studies/relay --out results/claims/relay"""

from __future__ import annotations

from collm.commands import helped


def main() -> int:
    """The command."""
    if helped("collm.studies.report", "report"):
        return 0
    from collm.studies.report import main

    return main()
