"""`python -m collm` is the command `collm`."""

import sys

from collm.commands import main

if __name__ == "__main__":
    sys.exit(main())
