"""Collective communication: calls that a group of processes make together to combine and exchange data.

    import maypole, numpy
    comm = maypole.init()                        # who am I? asked of the launcher
    gradient = numpy.full(1000, comm.rank, "f4")
    comm.all_reduce(gradient, "avg")             # now the mean over all ranks, in place

Start it with ``python -m maypole run -n 4 script.py``, torchrun, mpirun, mpiexec or srun.
"""

import atexit as _atexit

from . import _maypole
from ._maypole import *  # noqa: F403
from ._maypole import __version__ as __version__

_atexit.register(_maypole._leave)
