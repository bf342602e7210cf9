"""Measure noise and bias of policy gradients at fixed policies: collm gradient --config FILE --jobs 2"""

from __future__ import annotations

from pathlib import Path

from collm.commands import BASE, helped


def main() -> int:
    """The command."""
    if helped("collm.studies.gradient_test", "gradient_test"):
        return 0
    from collm.studies.gradient_test import main

    return main(Path(__file__).with_name("fit.py"), BASE)
