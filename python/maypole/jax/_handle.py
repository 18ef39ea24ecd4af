"""A communicator as a parameter of JAX primitives."""

import numpy as np

from .. import _maypole


class Handle:
    """Stands for an open communicator: equal for the same one, and holds on to it.

    Compiled programs know a communicator by number. JAX keeps a program's parameters as long as the program, so a
    communicator stays open while something compiled might still use it, unless it is closed by name.
    """

    def __init__(self, comm):
        if not isinstance(comm, _maypole.Communicator):
            raise TypeError(f"comm: expected a maypole.Communicator, got {type(comm).__name__}")
        self.number = _maypole._jax_handle(comm)
        self.comm, self.rank, self.size = comm, comm.rank, comm.size

    @property
    def attributes(self):
        """What a compiled call is told; the size, so that a program from a cache on disk runs on no other world."""
        return dict(comm=np.int64(self.number), size=np.int64(self.size))

    def __eq__(self, other):
        return isinstance(other, Handle) and self.number == other.number

    def __hash__(self):
        return hash(self.number)

    def __repr__(self):
        return f"<rank {self.rank} of {self.size}, communicator {self.number}>"
