"""Measure noise and bias of policy gradients at fixed policies: collm gradient --config FILE --jobs 2"""

from __future__ import annotations

from pathlib import Path

from collm.commands import BASE, wants_help


def main() -> int:
    """The command."""
    if wants_help():
        from collm.runtime.quick_help import function_help

        print(function_help("collm.studies.gradient_test", "gradient_test"))
        return 0
    from collm.studies.gradient_test import main

    return main(Path(__file__).with_name("fit.py"), BASE)
