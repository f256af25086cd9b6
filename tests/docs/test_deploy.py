"""What is in deploy/ is valid, names only what there is, and agrees with the code."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from turnout.common.events import REGISTRY

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = {path.name for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists()}
PROMETHEUS = DEPLOY / "prometheus"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
VARIABLE = re.compile(r"\bTURNOUT_[A-Z_]+\b")
# The oldest Kubernetes that is still supported when this was written, and the newest that the schemas know.
KUBERNETES = ("1.33.0", kubernetes_validate.latest_version())

Json = dict[str, Any]


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Every variable that some settings class reads, with that class and the name of its field."""
    read = runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="read")
    return {
        variable: (cls, field)
        for cls in read["settings_classes"]()
        for variable, field in read["variables"](cls).items()
    }


def resources() -> Iterator[Json]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def of_kind(kind: str) -> dict[str, Json]:
    return {found["metadata"]["name"]: found for found in resources() if found["kind"] == kind}


def compose() -> Json:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def pod(stateful: Json) -> Json:
    return stateful["spec"]["template"]["spec"]


# --- every file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(p for p in DEPLOY.rglob("*") if p.is_file()), ids=lambda p: p.name)
def test_every_variable_is_one_that_somebody_reads(path: Path, known: dict[str, Any]) -> None:
    unknown = set(VARIABLE.findall(path.read_text())) - known.keys()
    assert not unknown


def test_values_are_such_as_the_settings_take(known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    in_compose = compose()["x-environment"]
    for values in (in_compose, of_kind("ConfigMap")["turnout-settings"]["data"]):
        given = {k: v for k, v in values.items() if k.startswith("TURNOUT_") and "${" not in v}
        assert len(given) > 8
        for variable, value in given.items():
            monkeypatch.setenv(variable, value)
        for cls in {known[variable][0] for variable in given}:
            cls()
        for variable in given:
            monkeypatch.delenv(variable)


# --- Dockerfile ------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_dockerfile_copies_what_there_is_and_ends_as_nobody_special() -> None:
    found = instructions()
    last = [i for i, (word, _) in enumerate(found) if word == "FROM"][-1]
    words = dict(found[last:])
    assert words["USER"] == "10001:10001"
    assert "/livez" in words["HEALTHCHECK"]
    assert words["ARG"] == "SERVICE"
    assert json.loads(words["ENTRYPOINT"])[-1].startswith("exec turnout run ")
    assert [arguments for word, arguments in found if word == "FROM"][-1] == "base AS service"
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for word, arguments in found:
        if word == "COPY" and "--from" not in arguments:
            for source in shlex.split(arguments)[:-1]:
                for service in SERVICES:
                    name = source.replace("${SERVICE}", service)
                    assert (ROOT / name).exists()
                    assert any(name == one or name.startswith(f"{one}/") for one in kept)
    assert all("--require-hashes" in part for w, a in found if w == "RUN" for part in a.split("&&") if ".lock" in part
               and "install" in part)  # fmt: skip


@pytest.mark.parametrize("wanted", ["pyarrow==1\nfaust-streaming==1", "-e file:///x\nMarkdown-It-Py==1 ; x"])
def test_lock_is_cut_to_what_is_wanted_with_its_hashes(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "wanted.txt").write_text(wanted)
    program = ["awk", "-f", str(DEPLOY / "of-lock.awk"), str(tmp_path / "wanted.txt"), str(ROOT / "requirements.lock")]
    cut = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    names = {line.partition("=")[0].lower() for line in wanted.splitlines() if line[0].isalpha()}
    entries = re.split(r"\n(?=[a-z0-9])", cut.strip())
    assert {entry.partition("==")[0] for entry in entries} == names
    assert all("--hash=sha256:" in entry for entry in entries)


# --- compose ---------------------------------------------------------------------------------------------------------


def test_compose_file_is_whole() -> None:
    found = compose()
    services = found["services"]
    assert services.keys() >= SERVICES | {"kafka", "redis", "cassandra", "mlflow", "prometheus"}
    targets = {arguments.partition(" AS ")[2] for word, arguments in instructions() if word == "FROM"}
    for name, service in services.items():
        if "build" in service:
            context = (DEPLOY / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).exists()
            assert service["build"].get("target", "service") in targets
        else:
            assert re.fullmatch(r"[\w./-]+:[\w.-]+", service["image"]), "name the version"
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == "service_healthy"
            # An image of ours brings its own.
            assert "healthcheck" in services[other] or "build" in services[other]
        assert set(service["networks"]) <= found["networks"].keys()
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists()
            elif not source.startswith("${"):
                assert source in found["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} has no password and is for this machine alone"


def test_compose_file_runs_every_service_on_the_stores_that_it_names() -> None:
    services = compose()["services"]
    for name in SERVICES:
        service, environment = services[name], services[name]["environment"]
        assert service["build"]["args"] == {"SERVICE": name}
        assert environment["TURNOUT_INSTANCE"].startswith(name)
        for variable in ("KAFKA_SERVERS", "REDIS_URL", "CASSANDRA_HOSTS", "MLFLOW_URI"):
            host = re.sub(r"^\w+://", "", environment[f"TURNOUT_{variable}"]).partition(":")[0]
            assert host in services
        homes = [v for v in service["volumes"] if v["target"] == "/var/lib/turnout"]
        assert [v["source"] for v in homes] == [name], "an outbox and an instance are one process's"


SCHEMAS = find_spec("check_jsonschema")


@pytest.mark.skipif(SCHEMAS is None, reason="check-jsonschema brings the schema of compose files")
def test_compose_file_matches_its_schema() -> None:
    assert SCHEMAS is not None
    assert SCHEMAS.origin is not None
    schema = Path(SCHEMAS.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose(), json.loads(schema.read_text()))


def has_compose() -> bool:
    docker = shutil.which("docker")
    asked = [docker, "compose", "version"]
    return docker is not None and subprocess.run(asked, check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="there is no `docker compose` on this machine")
def test_compose_file_is_read_by_docker() -> None:
    subprocess.run(["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"], check=True)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.name)
def test_manifests_match_the_schemas(path: Path, version: str) -> None:
    for found in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(found, version, strict=True)


def test_every_resource_has_a_name_of_its_own_in_the_namespace() -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in resources()]
    assert len(names) == len(set(names))
    assert {f["metadata"].get("namespace") for f in resources() if f["kind"] != "Namespace"} == {"turnout"}
    assert not of_kind("Secret"), "values of secrets stand in no file"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_runs_as_it_must(name: str) -> None:
    stateful = of_kind("StatefulSet")[name]
    (container,) = pod(stateful)["containers"]
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert of_kind("Service")[stateful["spec"]["serviceName"]]["spec"]["clusterIP"] == "None"
    for service in (name, f"{name}-pods"):
        assert of_kind("Service")[service]["spec"]["selector"].items() <= labels.items()

    probes = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert {probe: at["path"] for probe, at in probes.items()} == {
        "startup": "/livez", "liveness": "/livez", "readiness": "/readyz",
    }  # fmt: skip
    assert {at["port"] for at in probes.values()} == {"http"}
    assert [(port["name"], port["containerPort"]) for port in container["ports"]] == [("http", 8080)]
    assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    security = {**pod(stateful)["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod(stateful)["terminationGracePeriodSeconds"] > 10, "a drain takes up to ten seconds"

    instance = next(one for one in container["env"] if one["name"] == "TURNOUT_INSTANCE")
    assert instance["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    claimed = {claim["metadata"]["name"] for claim in stateful["spec"].get("volumeClaimTemplates", ())}
    volumes = {volume["name"] for volume in pod(stateful)["volumes"]} | claimed
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert ("home" in claimed) == (name == "scoring"), "an outbox outlives its pod"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_scales_on_a_group_that_it_has(name: str) -> None:
    scaler = of_kind("HorizontalPodAutoscaler")[name]["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name}
    (lag,) = (metric["external"]["metric"] for metric in scaler["metrics"] if metric["type"] == "External")
    group = lag["selector"]["matchLabels"]["group"]
    document = json.loads((ROOT / "docs" / "asyncapi" / f"{name}.json").read_text())
    topics = [
        operation["channel"]["$ref"].rpartition("/")[2]
        for operation in document["operations"].values()
        if operation.get("bindings", {}).get("kafka", {}).get("groupId", {}).get("const") == group
    ]
    assert topics
    assert scaler["minReplicas"] <= scaler["maxReplicas"]
    # One that also answers requests may have more replicas than partitions.
    if all(metric["type"] == "External" for metric in scaler["metrics"]):
        assert scaler["maxReplicas"] <= max(REGISTRY[topic].partitions for topic in topics)
    budget = of_kind("PodDisruptionBudget")[name]["spec"]
    assert budget["selector"] == of_kind("StatefulSet")[name]["spec"]["selector"]
    assert budget["maxUnavailable"] < scaler["minReplicas"]


def test_what_is_named_is_made_or_told_how_to_make() -> None:
    told = (DEPLOY / "kubernetes" / "installation.yaml").read_text()
    secrets = dict(re.findall(r"create secret generic (\S+) +(.*)", told))
    claims, maps = of_kind("PersistentVolumeClaim"), of_kind("ConfigMap")
    for stateful in of_kind("StatefulSet").values():
        (container,) = pod(stateful)["containers"]
        for source in container["envFrom"]:
            assert source["configMapRef"]["name"] in maps
        for one in container["env"]:
            if (found := one["valueFrom"].get("secretKeyRef")) is not None:
                assert f"{found['key']}=" in secrets[found["name"]]
        for volume in pod(stateful)["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secrets


def test_policies_open_what_the_settings_need_and_nothing_by_default() -> None:
    policies = of_kind("NetworkPolicy")
    nothing = policies["nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    settings = of_kind("ConfigMap")["turnout-settings"]["data"]
    addresses = {"kafka": "KAFKA_SERVERS", "cassandra": "CASSANDRA_HOSTS", "redis": "REDIS_URL"}
    for store, variable in addresses.items():
        (port,) = policies[store]["spec"]["egress"][0]["ports"]
        assert f":{port['port']}" in settings[f"TURNOUT_{variable}"]
    credentials = {"kafka": "KAFKA", "cassandra": "CASSANDRA", "redis": "REDIS", "mlflow": "MLFLOW", "lake": "LAKE"}
    for stateful in of_kind("StatefulSet").values():
        labels = stateful["spec"]["template"]["metadata"]["labels"]
        (container,) = pod(stateful)["containers"]
        given = {one["name"].split("_")[1] for one in container["env"]}
        for store, prefix in credentials.items():
            reaches = policies[store]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            assert reaches == (prefix in given), f"{store}: the way and the key go together"


# --- Prometheus ------------------------------------------------------------------------------------------------------

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with the package prometheus")


@promtool
def test_prometheus_takes_its_files(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    # Debian's promtool knows no Kubernetes; the rest of that file is checked as it is.
    in_cluster = yaml.safe_load((PROMETHEUS / "kubernetes.yml").read_text())
    (job,) = in_cluster["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["turnout"]}}]
    (tmp_path / "kubernetes.yml").write_text(yaml.safe_dump(in_cluster))
    for name in ("prometheus.yml", "kubernetes.yml"):
        subprocess.run(["promtool", "check", "config", str(tmp_path / name)], check=True, capture_output=True)


def test_prometheus_scrapes_every_service_and_asks_for_metrics_that_exist() -> None:
    jobs = {
        job["job_name"]: job for job in yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    }
    assert set(jobs["turnout"]["dns_sd_configs"][0]["names"]) == SERVICES
    telemetry = (ROOT / "libs/common/src/turnout/common/telemetry.py").read_text()
    asked = (PROMETHEUS / "rules.yml").read_text() + (PROMETHEUS / "adapter.yml").read_text()
    for name in set(re.findall(r"\bturnout_[a-z_]+", asked)):
        assert f'"{name}"' in telemetry
    scalers = of_kind("HorizontalPodAutoscaler").values()
    wanted = {m["external"]["metric"]["name"] for s in scalers for m in s["spec"]["metrics"] if m["type"] == "External"}
    (rule,) = yaml.safe_load((PROMETHEUS / "adapter.yml").read_text())["externalRules"]
    assert wanted == {rule["name"]["as"]}
