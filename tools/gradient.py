"""Measure noise and bias of policy gradients at fixed policies: `python tools/gradient.py --config FILE --jobs 2`."""

import sys

from collm.commands.gradient import main

if __name__ == "__main__":
    sys.exit(main())
