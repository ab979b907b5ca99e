"""The JobSet of a run, and XPK's command: what is in them, and what pods make of them."""

import json
import re
import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import gke
from launch.jobset import Job, manifest
from launch.slices import FAMILIES, Slice
from lmsi_jax.errors import LmsiError, TryAgain

_SLICE = Slice(accelerator="tpu-v5-lite-podslice", topology="4x4")
_NAMES = ["--name=gemma", "--image=eu.gcr.io/p/lmsi_jax:1", "--topology=4x4"]
_OUT = "--gin.Run.output_dir=gs://bucket/run"

_DRY = """\
# 4 pods of 4 chips
kubectl apply --filename=- <<'LMSI_END'
{
  "apiVersion": "jobset.x-k8s.io/v1alpha2",
  "kind": "JobSet",
  "metadata": {
    "name": "gemma",
    "namespace": "default",
    "annotations": {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
  },
  "spec": {
    "network": {
      "enableDNSHostnames": true,
      "subdomain": "gemma"
    },
    "failurePolicy": {
      "maxRestarts": 10,
      "rules": [
        {
          "name": "mistake",
          "action": "FailJobSet",
          "onJobFailureReasons": [
            "PodFailurePolicy"
          ],
          "onJobFailureMessagePatterns": [
            "^Container lmsi for pod .* failed with exit code 2 matching "
          ]
        },
        {
          "name": "disrupted",
          "action": "RestartJobSetAndIgnoreMaxRestarts",
          "onJobFailureReasons": [
            "PodFailurePolicy"
          ]
        }
      ]
    },
    "replicatedJobs": [
      {
        "name": "slice",
        "replicas": 1,
        "template": {
          "spec": {
            "completionMode": "Indexed",
            "completions": 4,
            "parallelism": 4,
            "backoffLimit": 0,
            "podFailurePolicy": {
              "rules": [
                {
                  "action": "FailJob",
                  "onPodConditions": [
                    {
                      "type": "DisruptionTarget",
                      "status": "True"
                    }
                  ]
                },
                {
                  "action": "FailJob",
                  "onExitCodes": {
                    "containerName": "lmsi",
                    "operator": "In",
                    "values": [
                      2,
                      143
                    ]
                  }
                }
              ]
            },
            "template": {
              "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 120,
                "nodeSelector": {
                  "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
                  "cloud.google.com/gke-tpu-topology": "4x4",
                  "cloud.google.com/gke-spot": "true"
                },
                "tolerations": [
                  {
                    "key": "google.com/tpu",
                    "operator": "Exists",
                    "effect": "NoSchedule"
                  },
                  {
                    "key": "cloud.google.com/gke-spot",
                    "operator": "Equal",
                    "value": "true",
                    "effect": "NoSchedule"
                  }
                ],
                "containers": [
                  {
                    "name": "lmsi",
                    "image": "eu.gcr.io/p/lmsi_jax:1",
                    "command": [
                      "lmsi"
                    ],
                    "args": [
                      "run",
                      "quickstart",
                      "--gin.Run.output_dir=gs://bucket/run",
                      "--gin.Run.name=it's $$(x)",
                      "--coordinator_address=gemma-slice-0-0.gemma:8476",
                      "--process_count=4",
                      "--process_index=$(JOB_COMPLETION_INDEX)"
                    ],
                    "ports": [
                      {
                        "containerPort": 8476
                      }
                    ],
                    "resources": {
                      "requests": {
                        "google.com/tpu": 4,
                        "cpu": "89",
                        "memory": "153G"
                      },
                      "limits": {
                        "google.com/tpu": 4
                      }
                    }
                  }
                ]
              }
            }
          }
        }
      }
    ]
  }
}
LMSI_END
"""
_WORDS = ["--", "run", "quickstart", _OUT, "--gin.Run.name=it's $(x)"]


def test_the_dry_run_prints_the_manifest_with_its_command(capsys):
    assert gke.main([*_NAMES, "--capacity=spot", "--dry_run", *_WORDS]) == 0
    assert capsys.readouterr().out == _DRY


def test_what_runs_is_what_the_dry_run_prints(tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/words\ncat > {tmp_path}/stdin\nexit 7\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gke.main([*_NAMES, "--capacity=spot", *_WORDS]) == 7
    words, stdin = ((tmp_path / name).read_text() for name in ("words", "stdin"))
    assert f"# 4 pods of 4 chips\nkubectl {words.strip()} <<'LMSI_END'\n{stdin}LMSI_END\n" == _DRY


_XPK = """\
# 4 pods of 4 chips
xpk workload create --workload=gemma --cluster=c --project=my-project --zone=us-west4-a \
--tpu-type=v5litepod-16 --num-slices=1 --docker-image=eu.gcr.io/p/lmsi_jax:1 --max-restarts=50 \
--termination-grace-period-seconds=120 '--command=lmsi run quickstart \
--gin.Run.output_dir=gs://bucket/run '"'"'--gin.Run.name=it'"'"'"'"'"'"'"'"'s $(x)'"'"' \
--coordinator_address=auto'
"""
_CLUSTER = ["--cluster=c", "--project=my-project", "--zone=us-west4-a"]


def test_the_dry_run_prints_xpks_command(capsys):
    argv = [*_NAMES, "--xpk", *_CLUSTER, "--max_restarts=50", "--dry_run"]
    assert gke.main([*argv, *_WORDS]) == 0
    assert capsys.readouterr().out == _XPK
    (command,) = [word for word in shlex.split(_XPK, comments=True) if "--command=" in word]
    assert shlex.split(command.removeprefix("--command=")) == [
        *("lmsi", *_WORDS[1:]),
        "--coordinator_address=auto",
    ]


# --- the manifest beside the published schema -----------------------------------------------------

# kind: {field: (its kind, whether it must be there)}. From the references of JobSet v1alpha2 and of
# Kubernetes' batch/v1 and core/v1; a list's kind is in brackets.
_SCHEMA = {
    "JobSet": {
        "apiVersion": (str, True),
        "kind": (str, True),
        "metadata": ("Meta", True),
        "spec": ("JobSetSpec", True),
    },
    "Meta": {"name": (str, False), "namespace": (str, False), "annotations": (dict, False)},
    "JobSetSpec": {
        "replicatedJobs": (["ReplicatedJob"], True),
        "network": ("Network", False),
        "failurePolicy": ("FailurePolicy", False),
    },
    "Network": {"enableDNSHostnames": (bool, False), "subdomain": (str, False)},
    "FailurePolicy": {"maxRestarts": (int, False), "rules": (["FailureRule"], False)},
    "FailureRule": {
        "name": (str, True),
        "action": (str, True),
        "onJobFailureReasons": ([str], False),
        "onJobFailureMessagePatterns": ([str], False),
    },
    "ReplicatedJob": {"name": (str, True), "replicas": (int, False), "template": ("Jobs", True)},
    "Jobs": {"metadata": ("Meta", False), "spec": ("JobSpec", False)},
    "JobSpec": {
        "template": ("Pods", True),
        "completionMode": (str, False),
        "completions": (int, False),
        "parallelism": (int, False),
        "backoffLimit": (int, False),
        "podFailurePolicy": ("PodFailurePolicy", False),
    },
    "PodFailurePolicy": {"rules": (["PodRule"], True)},
    "PodRule": {
        "action": (str, True),
        "onExitCodes": ("ExitCodes", False),
        "onPodConditions": (["Condition"], False),
    },
    "ExitCodes": {"operator": (str, True), "values": ([int], True), "containerName": (str, False)},
    "Condition": {"type": (str, True), "status": (str, False)},
    "Pods": {"metadata": ("Meta", False), "spec": ("PodSpec", False)},
    "PodSpec": {
        "containers": (["Container"], True),
        "restartPolicy": (str, False),
        "terminationGracePeriodSeconds": (int, False),
        "nodeSelector": (dict, False),
        "tolerations": ([dict], False),
        "serviceAccountName": (str, False),
        "volumes": (["Volume"], False),
    },
    "Volume": {"name": (str, True), "csi": ("Csi", False)},
    "Csi": {"driver": (str, True), "volumeAttributes": (dict, False)},
    "Container": {
        "name": (str, True),
        "image": (str, False),
        "command": ([str], False),
        "args": ([str], False),
        "ports": ([dict], False),
        "resources": (dict, False),
        "volumeMounts": (["Mount"], False),
    },
    "Mount": {"name": (str, True), "mountPath": (str, True)},
}


def _check(value, kind, where="$"):
    if isinstance(kind, list):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            _check(item, kind[0], f"{where}[{index}]")
    elif isinstance(kind, str):
        fields = _SCHEMA[kind]
        assert not value.keys() - fields.keys(), (where, value.keys() - fields.keys())
        for name, (inner, needed) in fields.items():
            assert name in value or not needed, f"{where}.{name} is missing"
            if name in value:
                _check(value[name], inner, f"{where}.{name}")
    else:
        assert type(value) is kind, where


def _job(**changes):
    words = ("run", "quickstart", "--gin.Run.output_dir=/gcs/run")
    return Job(
        **{"name": "a", "namespace": "n", "image": "i", "slice": _SLICE, "words": words} | changes
    )


_FULL = {"bucket": "b", "service_account": "s", "capacity": "preemptible", "grace_seconds": 5}


@pytest.mark.parametrize("changes", [{}, _FULL])
def test_the_manifest_has_the_published_fields_and_no_others(changes):
    made = json.loads(json.dumps(manifest(_job(**changes))))
    _check(made, "JobSet")
    rules = made["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    # Exactly one of the two requirements in each rule, and pods that are not restarted in place.
    assert all(("onExitCodes" in rule) != ("onPodConditions" in rule) for rule in rules)


def test_a_missing_or_unknown_field_is_seen():
    made = manifest(_job())
    del made["spec"]["failurePolicy"]["rules"][0]["name"]
    with pytest.raises(AssertionError, match="name is missing"):
        _check(made, "JobSet")
    with pytest.raises(AssertionError, match="maxRestart"):
        _check({"maxRestart": 3}, "FailurePolicy")


def test_a_bucket_is_shown_as_a_folder():
    spec = manifest(_job(**_FULL))["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert spec["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,) = spec["spec"]["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "b"
    (mount,) = spec["spec"]["containers"][0]["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == (volume["name"], "/gcs")
    assert spec["spec"]["serviceAccountName"] == "s"
    assert spec["spec"]["nodeSelector"]["cloud.google.com/gke-preemptible"] == "true"


def _action(job, exit_code=None, condition=None):
    """The action of JobSet's controller on a pod's end, by the rules of both controllers.

    Kubernetes' Job: the first rule that fits ends the Job with the reason PodFailurePolicy and a
    message of this form; backoffLimit 0 ends it otherwise. JobSet: the first rule whose reasons and
    patterns (RE2, not anchored) fit, RestartJobSet without one.
    """
    spec = manifest(job)["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    pod = "default/a-slice-0-1-x7k2p"
    rules = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    for index, rule in enumerate(rules):
        codes = rule.get("onExitCodes", {}).get("values", [])
        conditions = [one["type"] for one in rule.get("onPodConditions", [])]
        if condition in conditions:
            message = f"Pod {pod} has condition {condition} matching FailJob rule at index {index}"
        elif exit_code in codes:
            message = (
                f"Container {rule['onExitCodes']['containerName']} for pod {pod} failed with exit "
                f"code {exit_code} matching FailJob rule at index {index}"
            )
        else:
            continue
        reason = "PodFailurePolicy"
        break
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("end", "action"),
    [
        ({"exit_code": LmsiError.exit_code}, "FailJobSet"),  # a typo is not tried ten times
        ({"exit_code": 143}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"condition": "DisruptionTarget"}, "RestartJobSetAndIgnoreMaxRestarts"),
        # A preempted pod may end with any code: its condition comes first.
        ({"condition": "DisruptionTarget", "exit_code": 2}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"exit_code": TryAgain.exit_code}, "RestartJobSet"),
        ({"exit_code": 134}, "RestartJobSet"),
        ({"exit_code": 1}, "RestartJobSet"),
        ({"exit_code": 137}, "RestartJobSet"),
    ],
)
def test_a_mistake_ends_the_jobset_and_a_preemption_costs_no_restart(end, action):
    assert _action(_job(), **end) == action


def _expanded(text, variables):
    """Kubernetes' $(NAME): "$$" stands for "$", an unknown name stays as it is."""
    found, rest = "", text
    while rest:
        name = re.match(r"\$\(([^)]*)\)", rest)
        if rest.startswith("$$"):
            found, rest = found + "$", rest[2:]
        elif name:
            found, rest = found + variables.get(name[1], name[0]), rest[name.end() :]
        else:
            found, rest = found + rest[0], rest[1:]
    return found


@settings(max_examples=100)
@given(words=st.lists(st.text("$()A _'\"\\;x"), max_size=4), index=st.integers(0, 3))
def test_a_pods_lmsi_gets_the_words_unchanged_and_its_own_index(words, index):
    job = _job(words=("run", *words))
    spec = manifest(job)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    variables = {"JOB_COMPLETION_INDEX": str(index), "A": "wrong", "": "wrong"}
    found = [_expanded(word, variables) for word in spec["containers"][0]["args"]]
    assert found[:-3] == ["run", *words]
    assert found[-3:] == [
        "--coordinator_address=a-slice-0-0.a:8476",
        "--process_count=4",
        f"--process_index={index}",
    ]


# --- slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips_per_host", "hosts", "xpk_type"),
    [  # From Google's tables of TPU configurations.
        ("tpu-v5-lite-podslice", "4x4", 4, 4, "v5litepod-16"),
        ("tpu-v5-lite-podslice", "16x16", 4, 64, "v5litepod-256"),
        ("tpu-v5-lite-podslice", "2x4", 8, 1, "v5litepod-8"),
        ("tpu-v6e-slice", "8x8", 4, 16, "v6e-64"),
        ("tpu-v4-podslice", "2x2x4", 4, 4, "v4-32"),
        ("tpu-v5p-slice", "8x8x8", 4, 128, "v5p-1024"),
    ],
)
def test_a_slice_has_the_published_number_of_machines(
    accelerator, topology, chips_per_host, hosts, xpk_type
):
    made = Slice(accelerator=accelerator, topology=topology, chips_per_host=chips_per_host)
    assert (made.hosts, made.xpk_type) == (hosts, xpk_type)


@pytest.mark.parametrize("accelerator", FAMILIES)
@pytest.mark.parametrize("topology", ["4", "4x", "4x4x4x4", "0x4", "-4x4", "4x4;", "axb", "4 x4"])
def test_a_topology_that_cannot_be_is_refused(accelerator, topology):
    with pytest.raises(LmsiError, match="--topology=.*: write chips as AxB"):
        Slice(accelerator=accelerator, topology=topology)


@pytest.mark.parametrize(
    "topology", ["3x3x3", "4x4x6", "8x4x4", "2x2x8", "1x1x1", "16x16x28", "4x4x388"]
)
def test_a_box_that_is_not_of_whole_cubes_is_refused_with_the_rule(topology):
    with pytest.raises(LmsiError, match="no such slice; .* 2x4x4, 4x4x4, .* at most 6,144 chips"):
        Slice(accelerator="tpu-v5p-slice", topology=topology)


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips_per_host", "cpus", "memory"),
    [  # vCPUs and GB of the machine, from Google's tables
        ("tpu-v4-podslice", "2x2x1", 4, 240, 407),
        ("tpu-v5-lite-podslice", "1x1", 1, 24, 48),
        ("tpu-v5-lite-podslice", "2x4", 8, 224, 384),
        ("tpu-v5p-slice", "16x16x24", 4, 208, 448),
        ("tpu-v6e-slice", "16x16", 4, 180, 720),
    ],
)
def test_a_pod_requests_most_of_its_machine_and_leaves_room_for_the_cluster_s_own(
    accelerator, topology, chips_per_host, cpus, memory
):
    chosen = Slice(accelerator=accelerator, topology=topology, chips_per_host=chips_per_host)
    spec = manifest(_job(slice=chosen))["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    requests = container["resources"]["requests"]
    assert requests["google.com/tpu"] == chips_per_host
    # GKE keeps up to a quarter of the first GB and a tenth or less of the rest, and some CPUs.
    assert 0.75 * cpus < int(requests["cpu"]) < cpus - 2
    assert 0.75 * memory < int(requests["memory"].removesuffix("G")) < 0.85 * memory
    assert container["resources"]["limits"] == {"google.com/tpu": chips_per_host}


@pytest.mark.parametrize("accelerator", ["tpu-v5-lite-podslice", "tpu-v5p-slice"])
def test_the_dimensions_are_the_accelerators(accelerator):
    wrong = {"tpu-v5-lite-podslice": "2x2x2", "tpu-v5p-slice": "4x4"}[accelerator]
    with pytest.raises(LmsiError, match="write chips as AxB"):
        Slice(accelerator=accelerator, topology=wrong)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--name=Gemma"], "--name='Gemma': it is at most 40"),
        (["--image=a b"], "--image='a b': it is an image"),
        (["--kubernetes_service_account=a;b"], "--kubernetes_service_account='a;b'"),
        (["--bucket=gs://b"], "a bucket's name, without gs://"),
        (["--chips_per_host=3"], "--chips_per_host=3: the machines of 4x4 have 4$"),
        (["--chips_per_host=8"], "--chips_per_host=8: the machines of 4x4 have 4$"),
        (["--topology=2x4", "--chips_per_host=1"], "the machines of 2x4 have 4 or 8$"),
        (["--topology=1x1"], "--chips_per_host=4: the machines of 1x1 have 1$"),
        (["--topology=4x16"], "no such slice; tpu-v5-lite-podslice has 1x1, 2x2, 2x4, .*16x16$"),
        (["--max_restarts=-1"], "are at least 0"),
        (["--xpk"], "--xpk needs --cluster"),
        (["--xpk", *_CLUSTER, "--bucket=b-1"], "storage and capacity are the cluster's"),
        (["--cluster=c"], "--cluster is for --xpk"),
        (["--accelerator=v5e"], "invalid choice: 'v5e'"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_before_anything_runs(changed, message):
    with pytest.raises(LmsiError, match=message):
        gke.main([*_NAMES, *changed, "--dry_run", *_WORDS])


def test_the_runs_folder_is_a_bucket_or_lies_in_one():
    local = ["--dry_run", "--", "run", "quickstart", "--gin.Run.output_dir=/gcs/run"]
    assert gke.main([*_NAMES, "--bucket=b-1", *local]) == 0
    with pytest.raises(LmsiError, match="not /gcs/run: add --gin.Run.output_dir=gs://"):
        gke.main([*_NAMES, *local])


def test_printed_json_survives_a_shell(tmp_path):
    job = _job(words=("run", "'\"`$x\\ LMSI_END"))
    line = gke.apply(job, None).shown().replace("kubectl apply --filename=-", "cat")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == manifest(job)
