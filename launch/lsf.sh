#!/bin/bash
#BSUB -J distsgd
#BSUB -n 4
#BSUB -R "span[ptile=1]"
#BSUB -W 4:00
#BSUB -wa USR1
#BSUB -wt 2
#BSUB -Q "75"
#BSUB -r
#BSUB -o distsgd-%J.out

# Yours: modules, the environment, and what to train.
# module load python mpi
. .venv/bin/activate || exit 1
options=(--dataset digits --microbatches 4 --out "runs/lsf-$LSB_JOBID")

killed=no
trap 'kill -USR1 "$run" 2>/dev/null' USR1 USR2
trap 'killed=yes; kill -USR1 "$run" 2>/dev/null' INT TERM
# SIGUSR2, which LSF sends at the limit to all processes of the job, would end MPICH's mpirun.
(trap '' USR2 && exec mpirun -n "$LSB_DJOB_NUMPROC" python -m distsgd.train "${options[@]}") &
run=$!
while kill -0 "$run" 2>/dev/null; do wait "$run"; done
wait "$run"
status=$?

# 75 is stopped with a checkpoint, and -Q has LSF run the job again; a job that was killed says something else.
[[ $killed == yes && $status -eq 75 ]] && exit 143
exit "$status"
