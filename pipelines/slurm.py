"""A study on GPUs of a SLURM cluster: this script submits the workers as jobs, and runs the study on them.

    python pipelines/slurm.py study.yaml --work /shared/work --jobs 8 --partition gpu --gres gpu:1
    python pipelines/slurm.py study.yaml --print        # show the job script, and submit nothing

Each job is one worker with one GPU. SLURM starts them when there is room: the study begins with the first one and uses
the others as they come. Run the script where jobs may be submitted, in a terminal that stays (tmux). When it ends, its
jobs end. If it is interrupted, the same command continues where it stopped.

It needs dask-jobqueue (pip install dask-jobqueue), and folders that all nodes see under the same paths.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import fmcache


def cluster_of(options: argparse.Namespace) -> Any:
    """Return a cluster whose workers are SLURM jobs; no job is submitted yet."""
    from dask_jobqueue import SLURMCluster

    return SLURMCluster(
        cores=options.cores,
        processes=1,  # one worker per job: with one GPU per job, each worker has a GPU of its own
        memory=options.memory,
        walltime=options.walltime,
        queue=options.partition,
        account=options.account,
        job_extra_directives=[f"--gres={options.gres}"] if options.gres else [],
        job_script_prologue=["export OMP_WAIT_POLICY=PASSIVE", *options.before],
        # without it, Dask would end a worker that uses the memory that SLURM has given it
        worker_extra_args=["--memory-limit", "0"],
        scheduler_options={"dashboard": False},
    )


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--work", default="work", help="working folder, on a disk that all nodes share")
    parser.add_argument("--manifest", default="data_manifest.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="number of workers")
    parser.add_argument("--cores", type=int, default=8, help="CPU cores of each job")
    parser.add_argument("--memory", default="64GB", help="memory of each job")
    parser.add_argument("--walltime", default="04:00:00")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--gres", default="gpu:1", help="what each job gets; '': no GPU")
    parser.add_argument(
        "--before", action="append", default=[], help="a line of the job script, such as 'module load X'"
    )
    parser.add_argument("--print", action="store_true", help="show the job script, and submit nothing")
    return parser.parse_args(words)


def main() -> None:
    """Submit the workers and run the study."""
    options = options_of()
    with cluster_of(options) as cluster:
        if options.print:
            print(cluster.job_script())
            return
        cluster.scale(jobs=options.jobs)
        print("waiting for the first job", file=sys.stderr)
        cluster.wait_for_workers(1)
        study = fmcache.Study(
            options.recipe, work=options.work, manifest=options.manifest, workers=cluster.scheduler_address, say=print,
            progress=sys.stderr,
        )  # fmt: skip
        study.extract()
        study.fit()


if __name__ == "__main__":
    main()
