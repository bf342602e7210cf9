"""Measure training speed against a plain implementation: `python tools/bench.py run --config ...`."""

import sys
from pathlib import Path

from collm.benchmark.command import main
from collm.commands import CONFIGS

if __name__ == "__main__":
    sys.exit(main(script=Path(__file__).resolve(), configs=CONFIGS))
