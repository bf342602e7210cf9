"""Measure how much of the return can be known at each turn: `python tools/ceiling.py --config FILE --out DIR`."""

import sys
from pathlib import Path

from collm.studies.ceiling import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1] / "configs" / "base.yaml"))
