"""Compare runs and untrained protocols on the same held-out tasks: `python tools/compare.py --config FILE`."""

import sys

from collm.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
