"""`python -m mailgenius`: the CLI, as `mailgenius`."""

import sys

from mailgenius.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
