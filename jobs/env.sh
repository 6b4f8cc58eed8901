# shellcheck shell=bash
#
# Usage: source jobs/env.sh
#
# Activates the environment that jobs/setup.sh made (.venv in the project, or $VENV), one thread a rank, and defines
#   run_mpi RANKS COMMAND...  COMMAND on that many ranks, also more than there are cores
#   cores                     the number of physical cores that this process may use

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    sed -n '3,7s/^# \{0,1\}//p' "$0"
    exit
fi

_jobs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC1091
source "${VENV:-$_jobs/../.venv}/bin/activate"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
export MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
if ((EUID == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

cores() { python "$_jobs/cores.py"; }

run_mpi() {
    local ranks=$1 options=()
    shift
    # Open MPI refuses more ranks than cores unless told so; MPICH never does and does not know the option.
    if ((ranks > ${SLURM_NTASKS:-$(cores)})) && mpirun --version | grep -q 'Open MPI'; then
        options=(--oversubscribe)
    fi
    # Seconds that Open MPI leaves ranks between SIGTERM and SIGKILL, one unless told so: to save their state in when the
    # job is to end, and to hang in when one of them has died.
    OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout:-5} \
        mpirun ${options[@]+"${options[@]}"} -n "$ranks" "$@"
}
