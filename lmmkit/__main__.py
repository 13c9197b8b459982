"""python -m lmmkit"""

from lmmkit.cli import main

main()
