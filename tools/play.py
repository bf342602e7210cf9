"""Play an environment with any team: `python tools/play.py RUN --agent builder_2=human`."""

import sys

from collm.commands.play import main

if __name__ == "__main__":
    sys.exit(main())
