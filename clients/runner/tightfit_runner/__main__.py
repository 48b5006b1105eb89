"""Runs the agent: `python -m tightfit_runner`."""

import sys

from tightfit_runner.cli import main

if __name__ == "__main__":
    sys.exit(main())
