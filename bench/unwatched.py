"""`python -m bench.unwatched …`: as `python -m streams …`, but nobody is told how far anything is. For bench/progress.py."""

import sys

from streams import announce
from streams.__main__ import main

if __name__ == "__main__":
    announce._is_watched = lambda end: False
    sys.exit(main())
