"""Compare runs and untrained protocols on the same held-out tasks: `python tools/compare.py --config FILE`."""

import sys
from pathlib import Path

from collm.studies.comparison import main

if __name__ == "__main__":
    sys.exit(main(default_config=Path(__file__).resolve().parents[1] / "configs" / "base.yaml"))
