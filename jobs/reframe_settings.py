"""ReFrame's settings for one machine and for a SLURM system: jobs/reframe_checks.py says how they are used.

Edit the partition's `access` (account) and `modules` for a cluster, in the two places that are marked.
"""

site_configuration = {
    "systems": [
        {
            "name": "workstation",
            "descr": "this machine, without a batch system",
            "hostnames": [".*"],
            "partitions": [
                {"name": "cores", "scheduler": "local", "launcher": "mpirun", "environs": ["builtin"], "max_jobs": 1}
            ],
        },
        {
            "name": "slurm",
            "descr": "nodes of a SLURM system",
            "hostnames": ["^$"],
            "partitions": [
                {
                    "name": "nodes",
                    # Asks no accounting database, which small systems do not have.
                    "scheduler": "squeue",
                    "launcher": "srun",
                    "environs": ["builtin"],
                    "access": [],  # 1: such as ["--account=mine", "--partition=main"]
                    "modules": [],  # 2: an MPI library, a parallel HDF5 and Python
                }
            ],
        },
    ]
}
