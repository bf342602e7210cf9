"""Measure how much of the return can be known at each turn: `python tools/ceiling.py --config FILE --out DIR`."""

import sys

from collm.commands.ceiling import main

if __name__ == "__main__":
    sys.exit(main())
