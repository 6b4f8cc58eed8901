#!/usr/bin/env bash
#SBATCH --job-name=mpi-resmtl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=60
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log

# Edit, 1 of 2: what your centre asks of every job; without the first # it counts.
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION

# Edit, 2 of 2: the modules that jobs/setup.sh was run with.
load_modules() {
    : module load openmpi hdf5-parallel python
}

usage() {
    cat <<'END'
A batch script for SLURM. `mpi-resmtl submit` fills in a copy of it; by hand, in the project's folder:

  sbatch jobs/slurm.sh run fig1c --output fig1c.h5                 one run on all ranks of the job
  sbatch --array=0-9 jobs/slurm.sh run fig1c --set seed=%a --output fig1c-%a.h5
                                                                   one for each seed; %a is the array's index
  sbatch jobs/slurm.sh sweep FILE.toml --output DIR                a sweep, its cells side by side
  sbatch --exclusive jobs/slurm.sh --ranks 1,2,4 run fig1c --output strong-%r.h5
                                                                   strong scaling; %r is the number of ranks
  sbatch --exclusive jobs/slurm.sh --ranks 1,2,4 --agents 100 run fig1c --set task.agents=%n --output weak-%r.h5
                                                                   weak scaling; %n is 100 times the ranks

sbatch's own options (--nodes, --ntasks-per-node, --time, ...) come before the script. Before its time is up SLURM
warns the job (--signal); the run saves its state and the job is put back into the queue, to go on where it was.
END
}

# `mpi-resmtl submit` fills in these.
project=${SLURM_SUBMIT_DIR:-$PWD}
venv=${VENV:-$project/.venv}
launcher='srun --mpi=pmix' # or mpirun
folder=                    # of results; jobs/cells in it has a line "RANKS NAME COMMAND" for each thing to be run
elements=1                 # of the array that shares them
groups=                    # of ranks of a sweep
options=()                 # for every command

set -euo pipefail
say() { echo "job ${id:-}: $*"; }

if [[ -z ${SLURM_JOB_ID:-} || (-z $folder && $# == 0) || ${1:-} == --help ]]; then
    usage
    exit 2
fi
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}
per_node=${SLURM_NTASKS_PER_NODE:?--ntasks-per-node is needed}
threads=${SLURM_CPUS_PER_TASK:-1}

# The warning before the time limit goes to this script alone (B: above), which hands it on to the ranks. When a job is
# cancelled, SLURM signals the ranks itself.
warned='' cancelled='' launched=''
# shellcheck disable=SC2317
on_warning() {
    warned=yes
    say "warned that the time is up"
    if [[ -n $launched ]]; then kill -USR1 "$launched" 2>/dev/null || true; fi
}
# shellcheck disable=SC2317
on_cancel() {
    cancelled=yes
    say "cancelled"
}
trap on_warning USR1
trap on_cancel TERM

load_modules
export OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads MKL_NUM_THREADS=$threads
# shellcheck source=env.sh disable=SC1091
VENV=$venv source "$project/jobs/env.sh"
# mpirun's one second from SIGTERM to SIGKILL is too short to save a state in: Open MPI 4 and 5.
export OMPI_MCA_odls_base_sigkill_timeout=25 PRTE_MCA_odls_base_sigkill_timeout=25

# launch RANKS ARGUMENTS...: mpi-resmtl on that many ranks, packed on as few nodes as hold them; -> its exit status. A run
# goes on where it was saved, if it was, as sweeps do.
launch() {
    local ranks=$1 status=0 command
    shift
    if [[ $1 == run ]]; then set -- "$@" --resume; fi
    case $launcher in
        srun*)
            # shellcheck disable=SC2206
            command=($launcher --nodes=$(((ranks + per_node - 1) / per_node)) --ntasks="$ranks" --distribution=block
                --cpus-per-task="$threads" --cpu-bind=cores --kill-on-bad-exit=1)
            ;;
        *)
            command=("$launcher" -n "$ranks")
            if "$launcher" --version | grep -qE 'Open MPI|open-mpi'; then
                command+=(--map-by "ppr:$per_node:node:PE=$threads" --bind-to core:overload-allowed)
            fi
            ;;
    esac
    env -u SLURM_NTASKS_PER_NODE MPI_RESMTL_RANKS="$ranks" "${command[@]}" mpi-resmtl "$@" &
    launched=$!
    # A signal that this script traps ends `wait` early, with the process still there.
    while kill -0 "$launched" 2>/dev/null; do
        wait "$launched" || true
    done
    wait "$launched" || status=$?
    launched=''
    return "$status"
}

# What is saved of a run, or of a sweep in a folder.
saved() { stat --format='%n %y %s' "$1".checkpoint* "$1"/*.h5 "$1"/*.checkpoint* 2>/dev/null || true; }

# note NAME STATE...: what `mpi-resmtl status` says of a cell.
note() {
    [[ -n $folder ]] || return 0
    echo "$2 $id ${*:3}" >"$folder/jobs/.$1.state.$id"
    mv "$folder/jobs/.$1.state.$id" "$folder/jobs/$1.state"
}

# cell RANKS NAME OUTPUT ARGUMENTS...: one run or sweep; -> its exit status, after a warning only if nothing got on.
progress=''
cell() {
    local ranks=$1 name=$2 output=$3 before status=0
    shift 3
    before=$(saved "$output")
    note "$name" running
    say "$name on $ranks ranks: mpi-resmtl $*"
    launch "$ranks" "$@" || status=$?
    if ((status == 0)) || [[ $(saved "$output") != "$before" ]]; then progress=yes; fi
    if [[ -n $cancelled && $status != 0 ]]; then
        note "$name" stopped
    elif [[ -n $warned && $status != [02] && -n $progress ]]; then
        note "$name" waiting
        requeue
    else
        if [[ -n $warned && $status != [02] ]]; then
            echo "mpi-resmtl: nothing was saved in the time of job $id; it needs a longer --time"
        fi
        note "$name" ended "$status"
    fi
    return "$status"
}

# Puts the job back into the queue, to go on where it is. One that has not got on would come back for ever.
requeue() {
    if [[ -z $progress ]]; then
        say "warned before anything was done; it needs a longer --time"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "goes back into the queue"
        exit 0
    else
        say "SLURM does not take it back; submit it again to go on"
    fi
    exit 1
}

# work RANKS NAME OUTPUT ARGUMENTS...: a cell, unless it is there already; the job goes on after one that fails.
failed=0
work() {
    if [[ -f $3 && " $* " != *' --overwrite '* ]]; then
        say "$3 is there already"
        note "$2" ended 0
        return
    fi
    if [[ -n $warned ]]; then requeue; fi
    if [[ -z $folder ]]; then
        cell "$@" || failed=$?
    else
        cell "$@" >>"$folder/jobs/$2.log" 2>&1 || failed=$?
    fi
    if [[ -n $cancelled ]]; then exit 143; fi
}

if [[ -n $folder ]]; then
    mapfile -t cells <"$folder/jobs/cells"
    for ((i = ${SLURM_ARRAY_TASK_ID:-0}; i < ${#cells[@]}; i += elements)); do
        read -r ranks name command <<<"${cells[i]}"
        if [[ $command == sweep ]]; then
            output=$folder arguments=(${groups:+--groups "$groups"})
        else
            output=$folder/$name.h5 arguments=()
        fi
        work "$ranks" "$name" "$output" "$command" "$folder/jobs/$name.toml" --output "$output" \
            ${arguments[@]+"${arguments[@]}"} ${options[@]+"${options[@]}"}
    done
else
    counts=${SLURM_NTASKS:?} agents=0
    while [[ ${1:-} == --* ]]; do
        case $1 in
            --ranks) counts=${2:?--ranks needs numbers} ;;
            --agents) agents=${2:?--agents needs a number} ;;
            *) usage && exit 2 ;;
        esac
        shift 2
    done
    for ranks in ${counts//,/ }; do
        arguments=("${@//%a/${SLURM_ARRAY_TASK_ID:-}}")
        arguments=("${arguments[@]//%r/$ranks}")
        arguments=("${arguments[@]//%n/$((agents * ranks))}")
        output=
        for ((i = 1; i < ${#arguments[@]}; i++)); do
            if [[ ${arguments[i - 1]} == --output ]]; then output=${arguments[i]}; fi
        done
        : "${output:?name the result with --output}"
        work "$ranks" "$output" "$output" "${arguments[@]}"
    done
fi
exit "$failed"
