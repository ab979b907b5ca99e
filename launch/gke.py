"""A run on a TPU slice of a GKE cluster, as a JobSet.

  python launch/gke.py --name=gemma --image=us-docker.pkg.dev/P/images/lmsi_jax:1 \\
      --accelerator=tpu-v5-lite-podslice --topology=4x4 --capacity=spot \\
      -- run CONFIG --gin.Run.output_dir=gs://BUCKET/runs/gemma

The cluster has JobSet's controller, 0.10 or newer, and a node pool of this topology; kubectl knows
the cluster. With --xpk the run is given to XPK, which writes a JobSet of its own.

  kubectl get jobset gemma                                             its state
  kubectl logs --selector=jobset.sigs.k8s.io/jobset-name=gemma --prefix --follow
  kubectl delete jobset gemma                                          end it
"""

import argparse
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence

# Run as a file, Python looks in launch/ alone.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import arguments  # noqa: E402
from launch.commands import Command, script, shown  # noqa: E402
from launch.jobset import CAPACITIES, Job, manifest  # noqa: E402
from launch.slices import FAMILIES, Slice  # noqa: E402
from lmsi_jax.errors import LmsiError  # noqa: E402


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    flags, words = arguments.split(argv)
    options = _parser().parse_args(flags)
    _check(options, words)
    job = Job(
        name=options.name,
        namespace=options.namespace,
        image=options.image,
        slice=Slice(
            accelerator=options.accelerator,
            topology=options.topology,
            chips_per_host=options.chips_per_host,
        ),
        words=words,
        max_restarts=options.max_restarts,
        capacity=options.capacity,
        service_account=options.kubernetes_service_account,
        bucket=options.bucket,
        mount=options.mount,
        grace_seconds=options.grace_seconds,
    )
    if options.xpk:
        command = xpk(job, options.cluster, options.project, options.zone)
    else:
        command = apply(job, options.context)
    if options.dry_run:
        print(shown([command]), end="")
        return 0
    return command.attach()


def apply(job: Job, context: str | None) -> Command:
    """Returns the command that applies the JobSet, in JSON, which kubectl reads as well as YAML."""
    argv = ("kubectl", "apply", "--filename=-")
    return Command(
        argv=argv if context is None else (*argv, f"--context={context}"),
        why=f"{job.slice.hosts} pods of {job.slice.chips_per_host} chips",
        stdin=json.dumps(manifest(job), indent=2) + "\n",
    )


def xpk(job: Job, cluster: str, project: str, zone: str) -> Command:
    """Returns the command that submits the run to XPK, which runs it in a shell in each pod."""
    lmsi = shlex.join(["lmsi", *job.words, "--coordinator_address=auto"])
    argv = (
        *("xpk", "workload", "create"),
        f"--workload={job.name}",
        f"--cluster={cluster}",
        f"--project={project}",
        f"--zone={zone}",
        f"--tpu-type={job.slice.xpk_type}",
        "--num-slices=1",
        f"--docker-image={job.image}",
        f"--max-restarts={job.max_restarts}",
        f"--termination-grace-period-seconds={job.grace_seconds}",
        f"--command={lmsi}",
    )
    return Command(argv=argv, why=f"{job.slice.hosts} pods of {job.slice.chips_per_host} chips")


def _check(options: argparse.Namespace, words: tuple[str, ...]) -> None:
    """Refuses values that Kubernetes would refuse or misunderstand."""
    names = ("name", "namespace", "image", "bucket", "mount", "context", "cluster", "project")
    arguments.check_names(
        **{name: getattr(options, name) for name in (*names, "zone")},
        kubernetes_service_account=options.kubernetes_service_account,
    )
    if min(options.max_restarts, options.grace_seconds) < 0:
        raise LmsiError("--max_restarts and --grace_seconds are at least 0")
    given = [name for name in ("cluster", "project", "zone") if getattr(options, name) is not None]
    if options.xpk and len(given) < 3:
        raise LmsiError("--xpk needs --cluster=..., --project=... and --zone=...")
    if options.xpk and (options.bucket is not None or options.capacity != "on_demand"):
        raise LmsiError("with --xpk, storage and capacity are the cluster's: set them there")
    if given and not options.xpk:
        raise LmsiError(f"--{given[0]} is for --xpk; kubectl's cluster is chosen with --context")
    arguments.check_words(words)
    arguments.check_shared(words, (*([f"{options.mount}/"] if options.bucket else []), "gs://"))


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--namespace", default="default", help="(%(default)s)")
    add("--context", help="kubectl's, for another cluster than its current one")
    add("--image", required=True, help="see launch/Dockerfile")
    add("--accelerator", choices=FAMILIES, default="tpu-v5-lite-podslice", help="(%(default)s)")
    add("--topology", required=True, help="as 4x4 for a v5e of 16 chips")
    add("--chips_per_host", type=int, default=4, help="of a machine: 4, 1 or 8 (%(default)s)")
    add("--capacity", choices=CAPACITIES, default="on_demand", help="(%(default)s)")
    add("--kubernetes_service_account", help="it must see the output_dir")
    add("--bucket", help="shown as a folder by Cloud Storage FUSE; gs:// needs no folder")
    add("--mount", default="/gcs", help="where (%(default)s)")
    add(
        "--max_restarts", type=int, default=10, help="besides those after preemptions (%(default)s)"
    )
    add(
        "--grace_seconds",
        type=int,
        default=120,
        help="SIGTERM to SIGKILL (%(default)s; spot has 15)",
    )
    add("--xpk", action="store_true", help="by XPK in place of kubectl")
    add("--cluster", help="XPK's")
    add("--project", help="XPK's")
    add("--zone", help="XPK's")
    add("--dry_run", action="store_true", help="print the command, run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(script(main))
