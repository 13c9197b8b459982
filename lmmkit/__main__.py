"""Runs the command line for `python -m lmmkit`."""

import os
import sys

# Python puts the current folder first in `sys.path`: a file `numpy.py` there would be imported.
# The folder is kept if lmmkit itself is imported from it.
if sys.path[:1] == [os.getcwd()] and not __file__.startswith(os.path.join(os.getcwd(), "lmmkit", "")):
    del sys.path[0]

from lmmkit.cli import main

main()
