"""Teams with a mate missing, late or of another run: `python tools/cross_play.py --runs '[A, B]' --out DIR`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("cross_play"))
