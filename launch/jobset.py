"""The JobSet of a run on a TPU slice of GKE, as a dictionary.

Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and Kubernetes' batch/v1 Job. One
replicated job of one Job represents the slice, with a pod on each of its machines. JobSet's
headless service gives each pod the name JOBSET-slice-0-INDEX.JOBSET; pod 0 is the coordinator.
"""

import dataclasses
import math
import re
from typing import Any

from lmsi_jax.errors import LmsiError

CAPACITIES = {
    "on_demand": None,
    "spot": "cloud.google.com/gke-spot",
    "preemptible": "cloud.google.com/gke-preemptible",
}
_JOB = "slice"
_CONTAINER = "lmsi"
_PORT = 8476  # JAX's own choice on Cloud TPU
_TERMINATED = 143  # exit code of lmsi after SIGTERM to any of its processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The names of a kind of TPUs in GKE and XPK.

    Attributes:
      dimensions: number of dimensions of a topology.
      xpk_type: XPK's name, before the size.
      cores: TensorCores of a chip, if the size counts them.
    """

    dimensions: int
    xpk_type: str
    cores: int = 1


FAMILIES = {
    "tpu-v4-podslice": Family(dimensions=3, xpk_type="v4", cores=2),
    "tpu-v5-lite-podslice": Family(dimensions=2, xpk_type="v5litepod"),
    "tpu-v5p-slice": Family(dimensions=3, xpk_type="v5p", cores=2),
    "tpu-v6e-slice": Family(dimensions=2, xpk_type="v6e"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """A TPU slice.

    Attributes:
      accelerator: a key of `FAMILIES`.
      topology: chips in each dimension, for example 4x4.
      chips_per_host: chips of each machine.

    Raises:
      LmsiError: there is no such slice.
    """

    accelerator: str
    topology: str
    chips_per_host: int = 4

    def __post_init__(self) -> None:
        family = FAMILIES[self.accelerator]
        shape = "AxBxC"[: 2 * family.dimensions - 1]
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", self.topology, re.ASCII) or (
            len(self.topology.split("x")) != family.dimensions
        ):
            raise LmsiError(
                f"--topology={self.topology}: write chips as {shape} for {self.accelerator}"
            )
        if self.chips_per_host < 1 or self.chips % self.chips_per_host:
            raise LmsiError(
                f"--chips_per_host={self.chips_per_host}: the {self.chips} chips of "
                f"{self.topology} are no multiple of it; 4 are usual, one machine may have 1 or 8"
            )

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return self.chips // self.chips_per_host

    @property
    def xpk_type(self) -> str:
        """XPK's --tpu-type."""
        family = FAMILIES[self.accelerator]
        return f"{family.xpk_type}-{self.chips * family.cores}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A run on a slice.

    Attributes:
      name, namespace: name and namespace of the JobSet.
      image: an image with the command `lmsi`.
      words: arguments of lmsi.
      max_restarts: restarts after failures; preemptions do not count.
      capacity: a key of `CAPACITIES`.
      service_account: Kubernetes service account with access to the bucket; None for the default.
      bucket, mount: a bucket that Cloud Storage FUSE mounts as a folder; None for none.
      grace_seconds: seconds from SIGTERM to SIGKILL.
    """

    name: str
    namespace: str
    image: str
    slice: Slice
    words: tuple[str, ...]
    max_restarts: int = 10
    capacity: str = "on_demand"
    service_account: str | None = None
    bucket: str | None = None
    mount: str = "/gcs"
    grace_seconds: int = 120


def manifest(job: Job) -> dict[str, Any]:
    """Returns the JobSet of a run.

    The failure of a pod ends its Job, and JobSet restarts all pods: a run continues with all of its
    processes or not at all. A disruption (a preemption, a drained node), or the SIGTERM that comes
    with it, does not count as a restart.
    """
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "annotations": {
                # Keeps the pods of other JobSets off the machines of the slice.
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {
                        "name": "disrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": _job(job)}}],
        },
    }


def _job(job: Job) -> dict[str, Any]:
    terminated = {"containerName": _CONTAINER, "operator": "In", "values": [_TERMINATED]}
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    pod: dict[str, Any] = {"spec": _pod(job)}
    if job.bucket is not None:
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return {
        "completionMode": "Indexed",
        "completions": job.slice.hosts,
        "parallelism": job.slice.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": disrupted},
                {"action": "FailJob", "onExitCodes": terminated},
            ]
        },
        "template": pod,
    }


def _pod(job: Job) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_seconds,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": job.slice.accelerator,
            "cloud.google.com/gke-tpu-topology": job.slice.topology,
        },
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [_container(job)],
    }
    capacity = CAPACITIES[job.capacity]
    if capacity is not None:
        spec["nodeSelector"][capacity] = "true"
        spec["tolerations"].append(
            {"key": capacity, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    if job.service_account is not None:
        spec["serviceAccountName"] = job.service_account
    if job.bucket is not None:
        bucket = {"bucketName": job.bucket, "mountOptions": "implicit-dirs"}
        driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket}
        spec["volumes"] = [{"name": "bucket", "csi": driver}]
    return spec


def _container(job: Job) -> dict[str, Any]:
    flags = (
        f"--coordinator_address={job.name}-{_JOB}-0-0.{job.name}:{_PORT}",
        f"--process_count={job.slice.hosts}",
        "--process_index=$(JOB_COMPLETION_INDEX)",
    )
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": job.image,
        "command": ["lmsi"],
        # Kubernetes replaces $(NAME) in arguments, and writes $ for $$.
        "args": [*(word.replace("$", "$$") for word in job.words), *flags],
        "ports": [{"containerPort": _PORT}],
        "resources": {
            "requests": {"google.com/tpu": job.slice.chips_per_host},
            "limits": {"google.com/tpu": job.slice.chips_per_host},
        },
    }
    if job.bucket is not None:
        container["volumeMounts"] = [{"name": "bucket", "mountPath": job.mount}]
    return container
