#!/bin/bash
# Print the batch script that a sweep would submit to Slurm, and submit nothing:
#
#     scripts/slurm_dry_run.sh trainer train -m hydra/launcher=submitit_slurm seed=0,1
#
# It needs no Slurm: an `sbatch` of its own keeps the script and refuses the job. On a cluster, `sbatch --test-only FILE`
# then says if the cluster would take it.
set -u
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
printf '#!/bin/sh\nexit 0\n' > "$folder/srun"  # submitit looks for it
printf '#!/bin/sh\nfor file; do :; done\ncp "$file" "%s/script"\nexit 1\n' "$folder" > "$folder/sbatch"
chmod +x "$folder/srun" "$folder/sbatch"
PATH="$folder:$PATH" "$@" > "$folder/log" 2>&1
if [ ! -f "$folder/script" ]; then
    cat "$folder/log" >&2
    exit 2
fi
cat "$folder/script"
