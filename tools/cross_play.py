"""Teams with a mate missing, late or of another run: `python tools/cross_play.py --runs '[A, B]' --out DIR`."""

import sys

from collm.commands.cross_play import main

if __name__ == "__main__":
    sys.exit(main())
