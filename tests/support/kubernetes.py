"""The custom resources of the Prometheus operator, as far as this project uses them; anything else is refused.

Source: prometheus-operator's API reference, monitoring.coreos.com/v1, where unknown fields are dropped without a word.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

import jsonschema
import kubernetes_validate
from kubernetes_validate.utils import schema_contents
from pydantic import BaseModel, ConfigDict, Field, StrictStr, TypeAdapter, ValidationError
from referencing import Registry, Resource

Duration = Annotated[
    StrictStr, Field(pattern=r"^(0|(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?|([0-9]+)d)$")
]
Name = Annotated[StrictStr, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Metadata(_Object):
    name: Name
    labels: dict[StrictStr, StrictStr] = {}


class Selector(_Object):
    match_labels: dict[StrictStr, StrictStr] = Field(alias="matchLabels")


class PodMetricsEndpoint(_Object):
    port: Name
    path: Annotated[StrictStr, Field(pattern="^/")]
    interval: Duration
    scrape_timeout: Duration = Field(alias="scrapeTimeout")


class PodMonitorSpec(_Object):
    job_label: StrictStr = Field(alias="jobLabel")
    selector: Selector
    pod_metrics_endpoints: list[PodMetricsEndpoint] = Field(alias="podMetricsEndpoints", min_length=1)


class PodMonitor(_Object):
    api_version: Literal["monitoring.coreos.com/v1"] = Field(alias="apiVersion")
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Alert(_Object):
    alert: StrictStr
    expr: StrictStr
    for_: Duration | None = Field(None, alias="for")
    keep_firing_for: Duration | None = None
    labels: dict[StrictStr, StrictStr] = {}
    annotations: dict[StrictStr, StrictStr] = {}


class Record(_Object):
    record: StrictStr
    expr: StrictStr
    labels: dict[StrictStr, StrictStr] = {}


class RuleGroup(_Object):
    name: StrictStr
    interval: Duration | None = None
    rules: list[Alert | Record]


class PrometheusRuleSpec(_Object):
    groups: list[RuleGroup]


class PrometheusRule(_Object):
    api_version: Literal["monitoring.coreos.com/v1"] = Field(alias="apiVersion")
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


_CUSTOM: TypeAdapter[PodMonitor | PrometheusRule] = TypeAdapter(
    Annotated[PodMonitor | PrometheusRule, Field(discriminator="kind")]
)


def problem(resource: dict[str, Any]) -> str | None:
    """Why Kubernetes would refuse a resource, or drop a part of it; None if it would not."""
    kind, api_version = resource.get("kind"), resource.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(api_version, str):
        return "it has no kind or no apiVersion"
    if api_version.startswith("monitoring.coreos.com/"):
        try:
            _CUSTOM.validate_python(resource)
        except ValidationError as error:
            return str(error)
        return None
    try:
        found = jsonschema.exceptions.best_match(_validator(kind, api_version).iter_errors(resource))
    except FileNotFoundError:
        return f"there is no {kind} in {api_version}"
    return found and str(found.message)


@cache
def _validator(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    """What ``kubernetes_validate.validate(strict=True)`` makes anew each time, which takes a tenth of a second.

    Raises FileNotFoundError if the newest Kubernetes has no such kind.
    """
    version = kubernetes_validate.latest_version()
    # apps/v1 is the file "apps-v1", and networking.k8s.io/v1 the file "networking-v1".
    group, _, group_version = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.split(".")[0], group_version)))
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    schema, definitions = (
        schema_contents(f"{folder}/{each}.json", version) for each in (name, "_definitions")
    )
    registry: Registry[Any] = Resource.from_contents(definitions) @ Registry()
    return jsonschema.Draft202012Validator(schema, registry=registry)
