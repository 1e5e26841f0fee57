"""The RayJob of KubeRay as typed models, its pods and metadata those of Kubernetes' own.

Kubeflow's package has no RayJob. Parts that foreframe does not render are taken as they are (`dict`).
Source: the schema of rayjobs.ray.io, v1, of KubeRay 1.7.
"""

from __future__ import annotations

from typing import Any, Literal

from kubeflow_trainer_api import models
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic.alias_generators import to_camel

Anything = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, populate_by_name=True, arbitrary_types_allowed=True
    )


class HeadGroupSpec(_Part):
    template: models.IoK8sApiCoreV1PodTemplateSpec
    ray_start_params: dict[str, StrictStr] | None = None
    resources: dict[str, StrictStr] | None = None
    labels: dict[str, StrictStr] | None = None
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    head_service: Anything | None = None
    enable_ingress: StrictBool | None = None
    ingress_options: Anything | None = None


class WorkerGroupSpec(_Part):
    group_name: StrictStr
    template: models.IoK8sApiCoreV1PodTemplateSpec
    min_replicas: StrictInt = Field(ge=0)
    max_replicas: StrictInt = Field(ge=0)
    replicas: StrictInt | None = Field(None, ge=0)
    num_of_hosts: StrictInt | None = Field(None, ge=1)
    ray_start_params: dict[str, StrictStr] | None = None
    resources: dict[str, StrictStr] | None = None
    labels: dict[str, StrictStr] | None = None
    idle_timeout_seconds: StrictInt | None = None
    priority: StrictInt | None = None
    suspend: StrictBool | None = None
    scale_strategy: Anything | None = None


class UpgradeStrategy(_Part):
    type: Literal["Recreate", "None"] | None = None


class RayClusterSpec(_Part):
    head_group_spec: HeadGroupSpec
    worker_group_specs: list[WorkerGroupSpec] | None = None
    ray_version: StrictStr | None = None
    enable_in_tree_autoscaling: StrictBool | None = None
    suspend: StrictBool | None = None
    managed_by: StrictStr | None = None
    upgrade_strategy: UpgradeStrategy | None = None
    head_service_annotations: dict[str, StrictStr] | None = None
    autoscaler_options: Anything | None = None
    auth_options: Anything | None = None
    gcs_fault_tolerance_options: Anything | None = None
    history_server_options: Anything | None = None
    network_policy: Anything | None = None
    tls_options: Anything | None = None


class SubmitterConfig(_Part):
    backoff_limit: StrictInt | None = Field(None, ge=0)


class RayJobSpec(_Part):
    entrypoint: StrictStr | None = None
    entrypoint_num_cpus: float | None = None
    entrypoint_num_gpus: float | None = None
    entrypoint_resources: StrictStr | None = None
    ray_cluster_spec: RayClusterSpec | None = None
    cluster_selector: dict[str, StrictStr] | None = None
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = None
    submitter_pod_template: models.IoK8sApiCoreV1PodTemplateSpec | None = None
    submitter_config: SubmitterConfig | None = None
    shutdown_after_job_finishes: StrictBool | None = None
    ttl_seconds_after_finished: StrictInt | None = Field(None, ge=0)
    active_deadline_seconds: StrictInt | None = Field(None, ge=1)
    pre_running_deadline_seconds: StrictInt | None = Field(None, ge=1)
    backoff_limit: StrictInt | None = Field(None, ge=0)
    job_id: StrictStr | None = None
    managed_by: StrictStr | None = None
    metadata: dict[str, StrictStr] | None = None
    runtime_env_yaml: StrictStr | None = Field(None, alias="runtimeEnvYAML")
    suspend: StrictBool | None = None
    deletion_strategy: Anything | None = None


class RayJob(_Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: models.IoK8sApimachineryPkgApisMetaV1ObjectMeta
    spec: RayJobSpec
    status: Anything | None = None
