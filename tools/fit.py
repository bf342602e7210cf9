"""Train, validate, test or predict: `python tools/fit.py {fit,validate,test,predict} --config ...`."""

import sys
from pathlib import Path

from collm.cli import main

if __name__ == "__main__":
    sys.exit(main(default_config=Path(__file__).resolve().parents[1] / "configs" / "base.yaml"))
