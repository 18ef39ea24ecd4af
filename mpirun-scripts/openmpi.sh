#!/bin/sh
# openmpi.sh N PROGRAM ARGS...: N ranks under Open MPI's mpirun (or MPIRUN), more than there are cores if need be.
# Maypole programs are not MPI programs: they only ask mpirun's PMIx who they are and where rank 0 is.
n=$1
shift
# mpirun refuses root, which everybody is in a container.
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec "${MPIRUN:-mpirun}" --oversubscribe -n "$n" "$@"
