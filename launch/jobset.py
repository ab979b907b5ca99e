"""The JobSet of a run on a TPU slice of GKE, as a dictionary.

Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and Kubernetes' batch/v1 Job. One
replicated job of one Job represents the slice, with a pod on each of its machines. JobSet's
headless service gives each pod the name JOBSET-slice-0-INDEX.JOBSET; pod 0 is the coordinator.
"""

import dataclasses
from typing import Any

from launch.slices import Slice
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
# Of a machine's vCPUs and memory; the rest is for GKE's own pods and for Cloud Storage FUSE's.
_REQUESTED = 0.8
# As Kubernetes words it: Container NAME for pod NAMESPACE/NAME failed with exit code CODE matching
# FailJob rule at index INDEX (pkg/controller/job/pod_failure_policy.go).
_MISTAKE_MESSAGE = (
    f"^Container {_CONTAINER} for pod .* failed with exit code {LmsiError.exit_code} matching "
)


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
    processes or not at all. A mistake of the user, which another attempt would not cure, ends the
    JobSet at once. A disruption (a preemption, a drained node), or the SIGTERM that comes with it,
    does not count as a restart.

    A Job that one of its podFailurePolicy's rules has ended has the reason PodFailurePolicy,
    whichever rule it was; its message tells them apart. Patterns for messages came with JobSet 0.10
    (https://github.com/kubernetes-sigs/jobset/tree/main/keps/262-ConfigurableFailurePolicy), and
    kubectl refuses the manifest as unknown to an older one.
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
                "rules": [  # the first that fits
                    {
                        "name": "mistake",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                        "onJobFailureMessagePatterns": [_MISTAKE_MESSAGE],
                    },
                    {
                        "name": "disrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                ],
            },
            "replicatedJobs": [{"name": _JOB, "replicas": 1, "template": {"spec": _job(job)}}],
        },
    }


def _job(job: Job) -> dict[str, Any]:
    codes = [LmsiError.exit_code, _TERMINATED]
    ended = {"containerName": _CONTAINER, "operator": "In", "values": codes}
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
                {"action": "FailJob", "onExitCodes": ended},
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
            "requests": {
                "google.com/tpu": job.slice.chips_per_host,
                "cpu": str(int(_REQUESTED * job.slice.machine.cpus)),
                "memory": f"{int(_REQUESTED * job.slice.machine.memory)}G",
            },
            "limits": {"google.com/tpu": job.slice.chips_per_host},
        },
    }
    if job.bucket is not None:
        container["volumeMounts"] = [{"name": "bucket", "mountPath": job.mount}]
    return container
