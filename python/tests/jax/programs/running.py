"""What the programs beside this end with."""

import maypole.jax


def all_checks(names, comm):
    """Run every function of a program that is called ``check_...``, in order, and say so."""
    for name, check in list(names.items()):
        if name.startswith("check_"):
            check()
            maypole.jax.barrier(comm)
            print(f"passed {name} on rank {comm.rank}", flush=True)
