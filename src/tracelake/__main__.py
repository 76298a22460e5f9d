"""`python -m tracelake`: the same as the `tracelake` command."""

import sys

from tracelake.cli import main

if __name__ == "__main__":
    sys.exit(main())
