"""Checks for ReFrame (https://reframe-hpc.readthedocs.io), as centres run them on their systems.

    reframe -C jobs/reframe_settings.py --system workstation -c jobs/reframe_checks.py -r
    reframe -C jobs/reframe_settings.py --system slurm -c jobs/reframe_checks.py -r

Figure 1c on one rank and on two has to be whole (`mpi-resmtl verify`) and to end with the values below; `bench step`
has to take no more than a time that is generous on any machine. `--performance-report` shows what was measured.
"""

from pathlib import Path

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import parameter, performance_function, run_after, run_before, sanity_function

PROJECT = Path(__file__).resolve().parents[1]
LOSSES = {"none": 0.053112929, "loss": 0.019657634}
"""Streaming loss of `fig1c`, seed 0, at its end, mean over the normal agents of the first group, by `table.py`."""


class Suite(rfm.RunOnlyRegressionTest):
    """A command of the suite under the system's own launcher."""

    valid_systems = ["*"]
    valid_prog_environs = ["builtin"]
    executable = "mpi-resmtl"
    prerun_cmds = [f"source {PROJECT}/jobs/env.sh"]
    time_limit = "10m"
    ranks = parameter([1, 2])

    @run_after("init")
    def ask_for_ranks(self) -> None:
        """One or two, on nodes of their own where there are nodes."""
        self.num_tasks, self.num_tasks_per_node = self.ranks, 1

    @run_before("run")
    def start_ranks(self) -> None:
        """Let SLURM speak the MPI library's PMIx, and mpirun start more ranks than there are cores."""
        if self.job.launcher.registered_name == "srun":
            self.job.launcher.options = ["--mpi=pmix"]
        elif self.job.launcher.registered_name == "mpirun":
            self.job.launcher.options = ["--oversubscribe"]


@rfm.simple_test
class Figure1c(Suite):
    """A run whose results are known, on any number of ranks."""

    executable_opts = ["run", "fig1c", "--output", "fig1c.h5", "--overwrite"]
    postrun_cmds = ["mpi-resmtl verify fig1c.h5", f"python {PROJECT}/analysis/table.py fig1c.h5 --format csv"]

    @sanity_function
    def is_whole_and_has_the_known_values(self):
        """`verify` finds nothing wrong, and the losses are those known."""
        rows = {rule: rf"^fig1c\.h5,generated,20,0,{rule},22,([^,]+)," for rule in LOSSES}
        known = [
            sn.assert_reference(sn.extractsingle(rows[rule], self.stdout, 1, float), loss, -1e-6, 1e-6)
            for rule, loss in LOSSES.items()
        ]
        return sn.all([sn.assert_found(r"^fig1c\.h5: whole: target-localization", self.stdout), *known])


@rfm.simple_test
class Step(Suite):
    """Time of an iteration of 100 agents, rule `loss`, recording on."""

    executable_opts = ["bench", "step", "--agents", "100", "--json", "step.json"]
    reference = {"*": {"iteration": (100, None, 0.5, "us")}}

    @sanity_function
    def has_measured(self):
        """The table has a row of 100 agents."""
        return sn.assert_found(r"^ +100 +968 +[12] ", self.stdout)

    @performance_function("us")
    def iteration(self):
        """Microseconds an iteration, the median."""
        return sn.extractsingle(r"^ +100 +968 +[12] +([\d.]+)", self.stdout, 1, float)
