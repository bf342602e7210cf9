"""Train methods with several seeds in parallel and compare them: collm study --config FILE --jobs 2"""

from __future__ import annotations

from pathlib import Path

from collm.commands import BASE, helped


def main() -> int:
    """The command."""
    if helped("collm.studies.study", "study"):
        return 0
    from collm.studies.study import main

    return main(Path(__file__).with_name("fit.py"), BASE)
