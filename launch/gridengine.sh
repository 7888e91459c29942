#!/bin/bash
#$ -N distsgd
#$ -S /bin/bash
#$ -pe mpi 4
#$ -l h_rt=04:00:00,s_rt=03:58:00
#$ -notify
#$ -r y
#$ -cwd
#$ -j y

# Yours: modules, the environment, and what to train; above, -pe names a parallel environment of your cluster.
# module load python mpi
. .venv/bin/activate || exit 1
options=(--dataset digits --microbatches 4 --out "runs/gridengine-$JOB_ID")

trap 'kill -USR1 "$run" 2>/dev/null' USR1 USR2
# SIGUSR2, which -notify has Grid Engine send before it kills, would end MPICH's mpirun.
(trap '' USR2 && exec mpirun -n "$NSLOTS" python -m distsgd.train "${options[@]}") &
run=$!
while kill -0 "$run" 2>/dev/null; do wait "$run"; done
wait "$run"
status=$?

# 75 is stopped with a checkpoint; at 99 Grid Engine runs the job again, unless it was deleted.
[[ $status -eq 75 ]] && exit 99
exit "$status"
