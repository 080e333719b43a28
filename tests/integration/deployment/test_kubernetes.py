"""deploy/kubernetes: what Kubernetes and the Prometheus operator accept, and mistakes in it are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from listener import config
from tests.support import prometheus_rule
from tests.support.kubernetes import problem
from tests.support.mutants import changed, misspelt, retyped, survivors
from tests.support.service import PROJECT

FOLDER = PROJECT / "deploy/kubernetes"
RESOURCES: dict[str, dict[str, Any]] = {
    f"{path.name} {resource['kind']} {resource['metadata']['name']}": resource
    for path in sorted(FOLDER.glob("*.yaml"))
    for resource in yaml.safe_load_all(path.read_text())
}
WRITTEN_BY_HAND = [name for name in RESOURCES if not name.startswith(prometheus_rule.WRITTEN.name)]
DEPLOYMENT = RESOURCES["deployment.yaml Deployment push-listener"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
POD_MONITOR = RESOURCES["podmonitor.yaml PodMonitor push-listener"]
SECRETS = {
    resource["metadata"]["name"]: resource for resource in RESOURCES.values() if resource["kind"] == "Secret"
}


def refused(resource: Any) -> bool:
    return problem(resource) is not None


@pytest.mark.parametrize("name", RESOURCES)
def test_every_resource_is_accepted(name: str) -> None:
    assert problem(RESOURCES[name]) is None


@pytest.mark.parametrize("name", WRITTEN_BY_HAND)
def test_misspelt_keys_are_refused_except_names_that_anybody_may_choose(name: str) -> None:
    # Labels, annotations, resources, and what a secret holds. The tests below compare them with what uses them.
    free = ("labels", "matchLabels", "stringData", "annotations", "requests", "limits")
    kept = survivors(misspelt(RESOURCES[name]), refused)
    assert {where for where in kept if not any(f"{each}." in where for each in free)} == set()


@pytest.mark.parametrize("name", WRITTEN_BY_HAND)
def test_values_of_another_type_are_refused(name: str) -> None:
    kept = survivors(retyped(RESOURCES[name]), refused)
    # They may be numbers or texts, and only the server reads the texts.
    either = ("maxUnavailable", "maxSurge", "memory", "cpu")
    assert {where for where in kept if where.rpartition(".")[2] not in either} == set()


@pytest.mark.parametrize(
    ("name", "where", "value"),
    [
        ("deployment.yaml Deployment push-listener", "apiVersion", "apps/v2"),
        ("deployment.yaml Deployment push-listener", "spec.replicas", "2"),
        ("deployment.yaml Deployment push-listener", "spec.template.spec.containers.0.args", "run"),
        ("podmonitor.yaml PodMonitor push-listener", "apiVersion", "monitoring.coreos.com/v2"),
        ("podmonitor.yaml PodMonitor push-listener", "spec.podMetricsEndpoints.0.port", 9091),
        ("podmonitor.yaml PodMonitor push-listener", "spec.podMetricsEndpoints.0.interval", "15 s"),
        ("podmonitor.yaml PodMonitor push-listener", "spec.podMetricsEndpoints.0.path", "metrics"),
        ("podmonitor.yaml PodMonitor push-listener", "spec.podMetricsEndpoints", []),
    ],
)
def test_wrong_values_are_refused(name: str, where: str, value: object) -> None:
    assert refused(changed(RESOURCES[name], where, value))


def test_labels_lead_to_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    spread = [each["labelSelector"] for each in POD["topologySpreadConstraints"]]
    for selector in (DEPLOYMENT["spec"]["selector"], POD_MONITOR["spec"]["selector"], *spread):
        assert selector["matchLabels"].items() <= labels.items()
    assert POD_MONITOR["spec"]["jobLabel"] in labels


def test_names_lead_to_what_they_name() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    probes = [CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [(ports[probe["port"]], probe["path"]) for probe in probes] == [
        (8080, "/healthz"),
        (8080, "/healthz"),
        (8080, "/readyz"),
    ]
    (endpoint,) = POD_MONITOR["spec"]["podMetricsEndpoints"]
    env = {each["name"]: each["value"] for each in CONTAINER["env"]}
    assert str(ports[endpoint["port"]]) == env["METRICS_PORT"]

    volumes = {volume["name"]: SECRETS[volume["secret"]["secretName"]] for volume in POD["volumes"]}
    (mount,) = CONTAINER["volumeMounts"]
    path = Path(env["GOOGLE_APPLICATION_CREDENTIALS"])
    assert str(path.parent) == mount["mountPath"]
    assert path.name in volumes[mount["name"]]["stringData"]
    for container in (CONTAINER, *POD["initContainers"]):
        assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["push-listener"]


def test_resources_are_those_that_a_node_has() -> None:
    assert {name for each in CONTAINER["resources"].values() for name in each} == {"cpu", "memory"}


def test_a_pod_has_the_time_to_end_and_runs_as_the_user_of_the_image() -> None:
    defaults = {variable.name: variable.default for variable in config.describe()}
    assert POD["terminationGracePeriodSeconds"] > float(defaults["SHUTDOWN_GRACE"])
    dockerfile = (PROJECT / "deploy/docker/Dockerfile").read_text()
    security = POD["securityContext"]
    assert f"\nUSER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile


def test_the_rule_holds_the_rules_of_prometheus() -> None:
    """`scripts/prometheus-rule` writes it."""
    assert prometheus_rule.WRITTEN.read_text() == prometheus_rule.text(prometheus_rule.RULES)


def test_a_rule_is_wrapped_as_it_is(tmp_path: Path) -> None:
    groups = {
        "groups": [
            {
                "name": "g",
                "interval": "30s",
                "rules": [
                    {"record": "r", "expr": "sum(\n  x\n)\n"},
                    {"alert": "A", "expr": "r > 1", "for": "2m", "labels": {"severity": "page"}},
                ],
            }
        ]
    }
    (tmp_path / "a.yml").write_text(yaml.safe_dump(groups))
    (tmp_path / "b.yml").write_text(yaml.safe_dump({"groups": [{"name": "h", "rules": []}]}))
    wrapped = yaml.safe_load(prometheus_rule.text(tmp_path))
    assert wrapped["spec"]["groups"] == [*groups["groups"], {"name": "h", "rules": []}]
    assert problem(wrapped) is None
    assert survivors(misspelt(wrapped), refused) == {
        "metadata.labels.app.kubernetes.io/name",
        "spec.groups.0.rules.1.labels.severity",
    }
    assert survivors(retyped(wrapped), refused) == set()
