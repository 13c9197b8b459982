"""python -m lmmkit"""

import os
import sys

# Python puts the folder it is started in before all others: a data set's `numpy.py` would be run.
# Kept where it is what lmmkit itself is imported from.
if sys.path[:1] == [os.getcwd()] and not __file__.startswith(os.path.join(os.getcwd(), "lmmkit", "")):
    del sys.path[0]

from lmmkit.cli import main

main()
