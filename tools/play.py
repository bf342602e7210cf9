"""Play an environment with any team: `python tools/play.py RUN --agent builder_2=human`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("play"))
