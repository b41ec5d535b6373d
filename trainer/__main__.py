"""`python -m trainer`."""

import os
import sys

try:
    folder = os.getcwd()
except FileNotFoundError:  # it has been removed, which the command reports
    folder = ""

# Python puts the working directory first, where a file such as torch.py would replace the installed package.
if sys.path and sys.path[0] == folder and not sys.flags.safe_path:
    del sys.path[0]

from trainer.cli import main

sys.exit(main())
