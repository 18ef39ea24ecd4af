#!/bin/sh
# mpich.sh N PROGRAM ARGS...: N ranks under the mpiexec (or MPIEXEC) of MPICH, Intel MPI or another Hydra launcher.
# For several hosts give a host file in HYDRA_HOST_FILE.
n=$1
shift
exec "${MPIEXEC:-mpiexec}" -n "$n" "$@"
