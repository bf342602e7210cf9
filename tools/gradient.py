"""Measure noise and bias of policy gradients at fixed policies: `python tools/gradient.py --config FILE --jobs 2`."""

import sys
from pathlib import Path

from collm.studies.gradient_test import main

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.exit(main(script=here / "fit.py", default_config=here.parent / "configs" / "base.yaml"))
