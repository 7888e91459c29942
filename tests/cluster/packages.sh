#!/bin/sh
# Installs what tests/cluster needs where apt-get can do it; elsewhere those tests are skipped and say what is missing.
PATH=$PATH:/usr/sbin:/sbin
missing=no
for program in slurmctld slurmd sbatch munged ip; do
    command -v "$program" >/dev/null || missing=yes
done
if [ "$missing" = no ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    exit 0
fi
packages="slurmctld slurmd slurm-client munge iproute2"
echo "apt-get install $packages"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # several words
{ timeout 30 apt-get update -qq && timeout 60 apt-get install -y -qq --no-install-recommends $packages; } >/dev/null ||
    echo "apt-get could not install them."
exit 0
