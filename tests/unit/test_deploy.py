"""docker-compose.yml and deploy/: required properties of containers, and consistency of files."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dagster_tidegate import BreakerResource
from dagster_tidegate.cli import main
from dagster_tidegate.settings import unknown, variables

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = {"migrate"}
AS_ROOT = {"docker-proxy"}  # Docker's socket belongs to root
DOCKERFILE = (PROJECT / "Dockerfile").read_text()
LEAST_GRACE_S = BreakerResource(services=[]).drain_timeout_s + 5


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


def strings(document: Any) -> list[str]:
    """Return all strings in a document."""
    if isinstance(document, dict):
        return [text for value in document.values() for text in strings(value)]
    if isinstance(document, list):
        return [text for value in document for text in strings(value)]
    return [str(document)]


# --- docker-compose.yml ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_a_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.search(r":(v?\d+\.\d+[\w.-]*|\$\{VERSION:-\d+\.\d+\.\d+\})$", image), image


@pytest.mark.parametrize("name", SERVICES)
def test_containers_do_not_run_as_root(name: str) -> None:
    if SERVICES[name].get("build"):
        assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
        assert "user" not in SERVICES[name]
    elif name not in AS_ROOT:
        assert SERVICES[name]["user"] not in ("root", "0", 0)


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_a_health_check_a_restart_policy_and_a_grace_period(name: str) -> None:
    service = SERVICES[name]
    if name in ONCE:
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "retries"} <= service["healthcheck"].keys()
    least = LEAST_GRACE_S if name == "code" else 10
    assert seconds(service["stop_grace_period"]) > least


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_services_wait_for_their_dependencies(name: str) -> None:
    needed = SERVICES[name].get("depends_on", {})
    assert set(needed) <= SERVICES.keys()
    if isinstance(needed, dict):
        for other, how in needed.items():
            done = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how["condition"] == done


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    text = (PROJECT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"environment: (\w+)", text))
    example = (PROJECT / ".env.example").read_text()
    offered = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    assert used | {"COMPOSE_PROFILES"} == offered.keys()
    for name in offered:
        if re.search("PASSWORD|TOKEN|URL", name):
            assert offered[name] == ""
            assert not re.search(rf"\$\{{{name}:-[^}}]", text)
    assert ".env" in (PROJECT / ".gitignore").read_text().splitlines()
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key and not key.endswith("__FILE"):
                assert value.startswith("${POSTGRES_PASSWORD:?"), name


def test_tidegate_variables_are_settings() -> None:
    for service in SERVICES.values():
        assert unknown(service.get("environment", {})) == []


def test_mounted_files_and_volumes_exist() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.rsplit(":", 2 if mount.endswith(":ro") else 1)[0]
            source = source.replace("${RUNS:-processes}", "processes")
            if source.startswith("./"):
                assert (PROJECT / source).exists(), source
            elif not source.startswith("/"):
                assert source in COMPOSE["volumes"]
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"]


def test_docker_compose_accepts_the_file_if_docker_is_installed() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        return
    given = {"POSTGRES_PASSWORD": "x", "PROMETHEUS_TOKEN": "x", "GRAFANA_PASSWORD": "x"}
    for profiles in ("", "docker", "metrics", "docker,metrics"):
        subprocess.run(
            [docker, "compose", "config", "--quiet"],
            cwd=PROJECT,
            env={"PATH": str(Path(docker).parent), "COMPOSE_PROFILES": profiles, **given},
            check=True,
        )


def test_the_image_copies_existing_files_that_are_not_ignored() -> None:
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(stages) > 1
    assert all(re.search(r":\d+\.\d+\.\d+-slim", stage) for stage in stages)
    for copied in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for path in copied.split():
            assert (PROJECT / path).exists(), path
            top = path.split("/")[0]
            assert f"!{top}" in (PROJECT / ".dockerignore").read_text().splitlines()


# --- the Dagster instances ------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["processes", "docker"])
def test_the_instances_of_compose_match_the_embedded_one_except_for_storage_and_launcher(
    runs: str,
) -> None:
    embedded = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    instance = yaml.safe_load((DEPLOY / "compose" / f"dagster-{runs}.yaml").read_text())
    assert instance.pop("storage") == {"postgres": {"postgres_url": {"env": "DAGSTER_STORAGE_URL"}}}
    launcher = instance.pop("run_launcher", None)
    assert (launcher is None) == (runs == "processes")
    for each in (embedded, instance):
        each["concurrency"]["runs"].pop("max_concurrent_runs")
    assert instance == embedded


def test_run_containers_get_the_environment_and_volumes_of_runs() -> None:
    instance = yaml.safe_load((DEPLOY / "compose" / "dagster-docker.yaml").read_text())
    config = instance["run_launcher"]["config"]
    given = set(config["env_vars"])
    assert given <= SERVICES["daemon"]["environment"].keys()
    assert {"TIDEGATE_STORE_URL", "DAGSTER_STORAGE_URL", "PGPASSWORD"} <= given
    assert config["network"] == f"{COMPOSE['name']}_default"
    assert config["container_kwargs"]["stop_timeout"] > LEAST_GRACE_S
    mounted = {mount.split(":")[0] for mount in config["container_kwargs"]["volumes"]}
    assert mounted <= {f"{COMPOSE['name']}_{volume}" for volume in COMPOSE["volumes"]}


# --- Prometheus and Grafana -----------------------------------------------------------------------


def test_prometheus_scrapes_the_web_server_and_has_the_rules() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["web:3000"]}]
    mounted = [mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]]
    assert set(prometheus["rule_files"]) <= set(mounted)
    token = job["authorization"]["credentials_file"]
    assert token == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    assert "web" in SERVICES["web"]["environment"]["TIDEGATE_SERVE_ALLOWED_HOSTS"].split()
    variable = prometheus["global"]["external_labels"]["tidegate_url"]
    assert variable.strip("${}") in SERVICES["prometheus"]["environment"]


def test_grafana_has_the_data_source_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    boards = yaml.safe_load((provisioning / "dashboards" / "tidegate.yaml").read_text())
    path = boards["providers"][0]["options"]["path"]
    assert any(mount.split(":")[1] == path for mount in SERVICES["grafana"]["volumes"])
    assert list((DEPLOY / "grafana" / "dashboards").glob("*.json"))


# --- docs/production.md ---------------------------------------------------------------------------

GUIDE = (PROJECT / "docs" / "production.md").read_text()
CONSOLE = [
    line.strip().removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
]


def test_files_named_in_the_guide_exist() -> None:
    for path in re.findall(r"\b(?:deploy|docs)/[\w/.-]+\.\w+", GUIDE):
        assert (PROJECT / path).exists(), path


def test_services_named_in_the_guide_exist() -> None:
    for line in CONSOLE:
        if command := re.match(r"docker compose (?:run --rm|exec) (\w+)", line):
            assert command[1] in SERVICES, line


@pytest.mark.parametrize("line", [line for line in CONSOLE if "tidegate " in line])
def test_commands_in_the_guide_exist(line: str) -> None:
    for words in re.findall(r"(?<![\w/.-])tidegate ([a-z][^&]*)", line):
        assert_is_a_command(shlex.split(words))


def assert_is_a_command(words: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        subcommand = command.get_command(click.Context(command), words[0])
        assert subcommand is not None, words
        command, words = subcommand, words[1:]
    command.make_context("tidegate", words)


# --- Kubernetes -----------------------------------------------------------------------------------

KUBERNETES = DEPLOY / "kubernetes"
VALUES = yaml.safe_load((KUBERNETES / "values.yaml").read_text())
MANIFESTS = [
    document
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "values.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
PODS = {
    f"{m['kind']}/{m['metadata']['name']}": m["spec"]["template"]["spec"]
    for m in MANIFESTS
    if m["kind"] in ("Deployment", "Job")
}


def environment_names() -> set[str]:
    """Return the names of all variables that the values and manifests set."""
    text = "".join(path.read_text() for path in KUBERNETES.glob("*.yaml"))
    return set(re.findall(r"\b(TIDEGATE_\w+)\b", text))


def test_there_are_manifests_for_migrations_and_the_web_server() -> None:
    assert {m["kind"] for m in MANIFESTS} >= {"Job", "Deployment", "Service", "Secret"}
    migrations, web = PODS["Job/tidegate-migrate"], PODS["Deployment/tidegate-web"]
    assert "tidegate store upgrade" in " ".join(strings(migrations["containers"][0]["command"]))
    assert web["containers"][0]["command"][:2] == ["tidegate", "serve"]


def test_run_pods_have_time_to_finish_their_records() -> None:
    launcher = VALUES["runLauncher"]
    assert launcher["type"] == "K8sRunLauncher"
    config = launcher["config"]["k8sRunLauncher"]["runK8sConfig"]
    grace = config["podSpecConfig"]["terminationGracePeriodSeconds"]
    assert grace >= LEAST_GRACE_S


def test_variables_in_kubernetes_are_settings() -> None:
    assert "TIDEGATE_STORE_URL" in environment_names() & set(variables())
    assert unknown(dict.fromkeys(environment_names(), "x")) == []


def test_pools_limit_whole_runs_and_free_their_slots() -> None:
    instance = VALUES["additionalInstanceConfig"]
    assert instance["concurrency"]["pools"]["granularity"] == "run"
    daemon = VALUES["dagsterDaemon"]
    assert daemon["runCoordinator"]["type"] == "QueuedRunCoordinator"
    assert daemon["runMonitoring"]["enabled"]
    assert daemon["runMonitoring"]["freeSlotsAfterRunEndSeconds"] > 0
    assert daemon["sensors"]["useThreads"]


def test_images_in_kubernetes_have_versions() -> None:
    images = [c["image"] for pod in PODS.values() for c in pod["containers"]]
    deployments = VALUES["dagster-user-deployments"]["deployments"]
    from_values = [VALUES["dagsterDaemon"]["image"], *(each["image"] for each in deployments)]
    images += [f"{image['repository']}:{image['tag']}" for image in from_values]
    assert all(re.search(r":\d+\.\d+\.\d+$", image) for image in images)
    assert "latest" not in strings([VALUES, MANIFESTS])


@pytest.mark.parametrize("name", PODS)
def test_pods_do_not_run_as_root_and_have_memory_limits(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["enableServiceLinks"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"]


def test_secrets_have_only_placeholders() -> None:
    for manifest in MANIFESTS:
        if manifest["kind"] == "Secret":
            assert set(manifest["stringData"].values()) <= {"", "<set it>"}
