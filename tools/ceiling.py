"""Measure how much of the return can be known at each turn: `python tools/ceiling.py --config FILE --out DIR`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("ceiling"))
