"""Score recorded cases without any model: `python tools/score.py cases.jsonl [--reward paper|released]`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("score"))
