#!/bin/sh
# slurm.sh N PROGRAM ARGS...: N ranks under srun, within an allocation (salloc, sbatch) or with one of their own.
# If this Slurm was built with PMIx, SRUN_ARGS=--mpi=pmix brings the ranks together without a computed port. The key keeps strangers out.
n=$1
shift
MAYPOLE_KEY=${MAYPOLE_KEY:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export MAYPOLE_KEY
exec srun -n "$n" ${SRUN_ARGS:-} "$@"
