"""`python -m tightfit` is the command `tightfit`."""

import sys

from tightfit.cli import main

sys.exit(main())
