"""Measure training speed against a plain implementation: collm bench run --config FILE"""

from __future__ import annotations

import sys
from pathlib import Path

from collm.commands import CONFIGS


def main() -> int:
    """The command."""
    from collm.benchmark.command import main

    return main(Path(__file__), CONFIGS)


if __name__ == "__main__":
    sys.exit(main())
