"""Which interpreters can have Maypole: a process's main one, with its lock. Elsewhere the import is an error.

Without the first check it would hang: what the extension's own threads find is the main interpreter.
"""

import importlib
import sys


def check_which():
    """Refuse a sub-interpreter, before the extension is loaded."""
    # CPython's own, by its name from 3.13 on and the one before. PyPy has neither, and no
    # sub-interpreters.
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        if interpreters.get_current() != interpreters.get_main():
            raise ImportError(
                "maypole runs in the main interpreter of a process, and this is a sub-interpreter: start processes in place of"
                " interpreters (under mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
            )
        return


def check_lock():
    """Refuse to run without the interpreter's lock.

    A free-threaded CPython has it on again when the extension is loaded, and says so, since that asks for it; unless it was
    told to keep it off.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise ImportError(
            "maypole needs the interpreter's lock, which PYTHON_GIL=0 or -X gil=0 keeps off: leave that out, and a"
            " free-threaded CPython turns it on when maypole is imported"
        )
