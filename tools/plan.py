"""Print the memory that a configuration needs on 1, 2 and 8 devices: `python tools/plan.py --config ...`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("plan"))
