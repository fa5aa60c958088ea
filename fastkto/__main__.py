"""`python -m fastkto`: the command line."""

import sys

from fastkto.cli import main

if __name__ == "__main__":
    sys.exit(main())
