#!/bin/bash
#PBS -N distsgd
#PBS -l select=4:ncpus=1:mpiprocs=1
#PBS -l walltime=04:00:00
#PBS -j oe
#PBS -r y

# Yours: where this script lies, modules, the environment, and what to train, into one folder for all of its jobs.
cd "$PBS_O_WORKDIR" || exit 1
script=launch/pbs.sh
# module load python mpi
. .venv/bin/activate || exit 1
options=(--dataset digits --microbatches 4 --out runs/pbs)

ranks=$(wc -l <"$PBS_NODEFILE")
signalled=no
trap 'signalled=yes; kill -USR1 "$run" 2>/dev/null' TERM USR1
mpirun --hostfile "$PBS_NODEFILE" -n "$ranks" python -m distsgd.train "${options[@]}" &
run=$!
while kill -0 "$run" 2>/dev/null; do wait "$run"; done
wait "$run"
status=$?

# 75 is stopped with a checkpoint, two minutes before the walltime is over: another job continues. SIGTERM comes from
# qdel, which is meant, and from preemption, after which PBS runs this job again itself.
[[ $status -eq 75 && $signalled == no ]] && qsub "$script"
exit "$status"
