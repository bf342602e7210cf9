"""Train, validate, test or predict: `python tools/fit.py {fit,validate,test,predict} --config ...`."""

import sys

from collm.commands.fit import run

if __name__ == "__main__":
    sys.exit(run())
