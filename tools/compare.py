"""Compare runs and untrained protocols on the same held-out tasks: `python tools/compare.py --config FILE`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("compare"))
