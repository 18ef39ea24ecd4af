#!/bin/sh
# torchrun.sh N PROGRAM ARGS...: N ranks on this host under torchrun (or TORCHRUN). The program need not be Python.
# For several hosts run torchrun on each with --nnodes, --node-rank, --master-addr and --master-port.
n=$1
shift
exec "${TORCHRUN:-torchrun}" --nproc-per-node "$n" --no-python "$@"
