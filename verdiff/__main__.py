"python -m verdiff: the same as the command verdiff."
import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
