"""Measure training speed against a plain implementation: `python tools/bench.py run --config ...`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("bench"))
