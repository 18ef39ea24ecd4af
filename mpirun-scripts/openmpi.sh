#!/bin/sh
# openmpi.sh N PROGRAM ARGS...: N ranks under Open MPI's mpirun (or MPIRUN), more than there are cores if need be.
# For several hosts name a host file in OMPI_MCA_orte_default_hostfile (Open MPI 4) or PRTE_MCA_prte_default_hostfile (5).
# Maypole programs are not MPI programs: they only ask mpirun's PMIx who they are and where rank 0 is.
n=$1
shift
# mpirun refuses root, which everybody is in a container.
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec "${MPIRUN:-mpirun}" --oversubscribe -n "$n" "$@"
