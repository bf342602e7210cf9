"""Measure noise and bias of policy gradients at fixed policies: `python tools/gradient.py --config FILE --jobs 2`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("gradient"))
