"""Train, validate, test or predict: `python tools/fit.py {fit,validate,test,predict} --config ...`."""

import sys

from collm.commands.fit import main

if __name__ == "__main__":
    sys.exit(main())
