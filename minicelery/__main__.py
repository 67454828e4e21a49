"""`python -m minicelery`: the command line."""

import sys

from minicelery.cli import main

if __name__ == "__main__":
    sys.exit(main())
