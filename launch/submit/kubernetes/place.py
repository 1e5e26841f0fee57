"""A Kubernetes cluster as a place: a TrainJob or a JobSet that trains, a RayJob that shards.

What may be set lies in `settings.py`, what is rendered in `manifests.py`, what is found wrong with a manifest
in `faults.py`, and how it is handed over in `kubectl.py`. The project has run none of it on a cluster.
"""

from __future__ import annotations

import shlex
from importlib.metadata import version
from typing import Any

import yaml

from data_pipeline.errors import ConfigError, Problem, UsageError
from launch.config import dump_config
from launch.submit.base import Job, JobConfig, Started
from launch.submit.kubernetes.addresses import Addresses, for_pods
from launch.submit.kubernetes.settings import KubernetesSettings

MANIFEST = "kubernetes.yaml"
LABEL = "app.kubernetes.io/instance"


class KubernetesPlace(KubernetesSettings):
    """A namespace of a Kubernetes cluster."""

    def files(self, job: Job) -> dict[str, str]:
        """The manifest, whole and checked. Raises: ConfigError with all that is wrong; UsageError."""
        from launch.submit.kubernetes.faults import check_text
        from launch.submit.kubernetes.manifests import documents
        from launch.submit.kubernetes.shape import kinds

        kinds()  # without its package nothing could be checked
        problems = [*self._unfit(job)]
        addresses = Addresses(self.volumes, job.workdir)
        configs = [dump_config(for_pods(each, addresses)) for each in _configs(job)]
        pythonpath = addresses.inside(str(job.code), key="code") if self.code == "volume" else None
        problems += addresses.problems
        is_let_in = self.secrets or self.secret_env or self.service_account or self.node_credentials
        if addresses.uses_store and not is_let_in:
            need = "a Secret by name, as the config reads s3://; or service_account, or node_credentials=true"
            problems.append(Problem("secrets", need, "(none)", ("secrets=[s3-credentials]",)))
        if problems:
            raise ConfigError.of({problem.key: problem for problem in problems}.values())
        text = _HEAD.format(models=version("kubeflow-trainer-api"), name=job.name, what=_what(job, self))
        text += "---\n".join(_to_yaml(each) for each in documents(job, self, configs, pythonpath))
        check_text(text, MANIFEST)
        return {MANIFEST: text}

    def _unfit(self, job: Job) -> list[Problem]:
        """What the form that this job takes cannot have."""
        found: list[Problem] = []
        is_train_job = job.kind == "train" and not job.elements and self.form == "trainjob"
        if is_train_job:
            for key, value in {
                "secrets": self.secrets,
                "priority_class": self.priority_class,
                "image_pull_policy": self.image_pull_policy,
                "keep_s": self.keep_s,
            }.items():
                if value:
                    hint = ": name each variable in secret_env" if key == "secrets" else ""
                    need = f"null, as a TrainJob has no field for it{hint}; or form=jobset, which has"
                    found.append(Problem(key, need, list(value) if isinstance(value, tuple) else value))
        if job.elements and self.nodes > 1:
            need = "1 for a sweep: an element is a pod of one indexed Job; submit larger runs one by one"
            found.append(Problem("nodes", need, self.nodes))
        if job.kind == "shard" and self.gpus_per_node:
            found.append(Problem("gpus_per_node", "0: sharding takes no GPUs", self.gpus_per_node))
        return found

    def start(self, job: Job, *, detach: bool) -> Started:
        """Ask the server to check, then to make it; a pod's output is in the cluster's own log."""
        from launch.submit.kubernetes.kubectl import Kubectl
        from launch.submit.kubernetes.manifests import name_of

        manifest = job.folder / MANIFEST
        kubectl = Kubectl.of(self, manifest)
        kubectl.check_references(self)
        kubectl.create()
        chosen = f"{LABEL}={name_of(job)}"
        told = {
            "watch": ("get", "pods", "-l", chosen, "--watch"),
            "log": ("logs", "-f", "--prefix", "--max-log-requests", "100", "-l", chosen),
            # pods have their time for a last save; nobody need wait for it
            "stop": ("delete", "--wait=false", "-f", str(manifest)),
        }
        lines = tuple((label, shlex.join([*kubectl.words, *words])) for label, words in told.items())
        return Started(f"{self.namespace}/{name_of(job)}", lines)


def _configs(job: Job) -> tuple[JobConfig, ...]:
    if job.elements and len(job.configs) != job.elements:
        raise UsageError(f"a sweep of {job.elements} elements has {len(job.configs)} configs: need one each")
    return job.configs or (job.config,)


def _what(job: Job, place: KubernetesSettings) -> str:
    if job.elements:
        return f"A sweep of {job.elements}, a pod an element"
    if job.kind == "shard":
        return f"Sharding on a Ray cluster of {place.nodes}"
    ranks = place.nodes * place.ranks
    return f"Training on {place.nodes} node{'s' * (place.nodes > 1)}, {ranks} rank{'s' * (ranks > 1)} in all"


_HEAD = """\
# {name}: {what}.
# Rendered by `foreframe submit` and validated offline, against the typed models of kubeflow-trainer-api
# {models} and foreframe's own rules. foreframe's authors have not run this form on a cluster.
# After an edit: foreframe config check-manifest FILE
"""


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, so that the config in a ConfigMap can be read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _to_yaml(plain: dict[str, Any]) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
