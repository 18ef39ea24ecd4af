"""``python -m maypole``: the ``maypole`` command, for those who have the Python package only.

``python -m maypole run -n 4 script.py`` starts four ranks of a script, with this interpreter.
"""

import sys

from ._maypole import command


def main() -> int:
    return command(["python -m maypole", *sys.argv[1:]], sys.executable)


if __name__ == "__main__":
    sys.exit(main())
