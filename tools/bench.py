"""Measure training speed against a plain implementation: `python tools/bench.py run --config ...`."""

import sys
from pathlib import Path

from collm.benchmark.command import main

if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.exit(main(script=here, configs=here.parents[1] / "configs"))
