"""``python -m cdzoo``: the same as the ``cdzoo`` command."""

import sys

from cdzoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
