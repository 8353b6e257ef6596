"""No image can be built where these tests run, so what the files name is checked to exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
OURS = ("migrate", "web", "sweeper", "worker", "exporter", "prober")


def compose() -> dict[str, Any]:
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(FROM, RUN …; the rest of the line), with continuation lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def commands() -> list[tuple[str, list[str]]]:
    """Every command that a container of ours runs, with where it stands."""
    found = []
    for dockerfile in DOCKERFILES:
        for word, rest in instructions(dockerfile):
            if word == "CMD":
                found.append((f"{dockerfile.name}: CMD", json.loads(rest)))
            elif word == "HEALTHCHECK":
                found.append((f"{dockerfile.name}: HEALTHCHECK", json.loads(rest.partition("CMD ")[2])))
            elif word == "RUN" and "manage.py" in rest:
                found.append((f"{dockerfile.name}: RUN", shlex.split(rest)))
    for name in OURS:
        service = compose()["services"][name]
        if "command" in service:
            found.append((f"compose: {name}", service["command"]))
    return found


def test_there_are_two_images() -> None:
    assert [dockerfile.name for dockerfile in DOCKERFILES] == ["web.Dockerfile", "worker.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_everything_an_image_copies_exists_and_is_let_into_its_context(dockerfile: Path) -> None:
    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore, "the context must be closed but for what is named"
    copies = [rest.split()[:-1] for word, rest in instructions(dockerfile) if word == "COPY"]
    assert copies
    for source in (source for sources in copies for source in sources):
        assert (REPOSITORY / source).exists(), f"{source} is copied and does not exist"
        assert source in let_in, f"{source} is copied, and .dockerignore keeps it out"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_does_not_run_as_root(dockerfile: Path) -> None:
    words = [word for word, _ in instructions(dockerfile)]
    users = [rest for word, rest in instructions(dockerfile) if word == "USER"]
    assert users == ["arborist"]
    assert words.index("USER") < words.index("CMD")
    assert "HEALTHCHECK" in words


@pytest.mark.parametrize(("where", "command"), commands(), ids=[where for where, _ in commands()])
def test_every_command_names_what_exists(where: str, command: list[str]) -> None:
    if command[:2] == ["python", "manage.py"]:
        assert command[2] in get_commands()
    elif command[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(command[2]) is not None
    elif command[:2] == ["python", "-c"]:
        compile(command[2], where, "exec")
    elif command[0] == "python":
        assert (REPOSITORY / command[1]).is_file()
    else:
        assert command[0] == "celery"
        assert importlib.util.find_spec("celery") is not None
    for argument in command:
        # module:attribute, as uvicorn and celery take them
        if match := re.fullmatch(r"((?:webapp|workers)[\w.]*):(\w+)", argument):
            module = importlib.import_module(match[1])
            assert hasattr(module, match[2])


def test_the_images_and_the_supervisor_serve_with_the_same_limits() -> None:
    from webapp.embedded.stack import SOCKET_MESSAGE_BYTES_MAX

    command = dict(commands())["web.Dockerfile: CMD"]
    assert command[command.index("--ws-max-size") + 1] == str(SOCKET_MESSAGE_BYTES_MAX)


def test_compose_has_the_services_and_each_says_how_it_is() -> None:
    services = compose()["services"]
    assert set(services) == {"database", "broker", *OURS}
    for name, service in services.items():
        from_dockerfile = name in ("web", "worker", "exporter", "prober")  # theirs stands in the image
        assert "healthcheck" in service or from_dockerfile or name == "migrate", name
        assert "image" in service
        if "build" in service:
            context = (DOCKER / service["build"]["context"]).resolve()
            assert context == REPOSITORY
            assert (context / service["build"]["dockerfile"]).is_file()


def test_compose_waits_for_the_tables_before_it_serves() -> None:
    services = compose()["services"]
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    for name in ("web", "sweeper", "worker", "exporter", "prober"):
        waits = services[name]["depends_on"]
        assert waits["migrate"] == {"condition": "service_completed_successfully"}
        assert waits["broker"] == {"condition": "service_healthy"}
        for other in waits:
            assert other in services


def test_our_services_have_no_rights_they_do_not_need() -> None:
    for name in OURS:
        service = compose()["services"][name]
        assert int(service["user"]) > 0
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8000:8000"]


def test_no_secret_is_committed() -> None:
    example = (DOCKER / "example.env").read_text(encoding="utf-8")
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    for name in ("ARBORIST_SECRET_KEY", "ARBORIST_DATABASE_PASSWORD"):
        assert f"\n{name}=\n" in example
        # `:?` makes compose refuse to start without a value.
        values = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert values
        for value in values:
            assert value == ":?fill in docker/.env"
    assert "/docker/.env" in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_every_setting_that_compose_passes_is_read() -> None:
    settings = (REPOSITORY / "webapp" / "settings.py").read_text(encoding="utf-8")
    for name in OURS:
        for variable in compose()["services"][name]["environment"]:
            assert f'"{variable}"' in settings, f"{variable} is passed to {name} and read by nobody"


def test_every_volume_is_declared_and_the_tables_have_one() -> None:
    document = compose()
    mounted = [volume for service in document["services"].values() for volume in service.get("volumes", [])]
    assert {volume.partition(":")[0] for volume in mounted} == set(document["volumes"])
    # Since PostgreSQL 18 the image keeps its data below this folder, in one named by its version.
    assert document["services"]["database"]["volumes"] == ["database:/var/lib/postgresql"]


def test_the_pinned_torch_is_the_same_everywhere() -> None:
    files = ("pyproject.toml", "scripts/setup.sh", "docker/worker.Dockerfile")
    pins = {
        name: set(re.findall(r"torch==?(\d+\.\d+\.\d+)", (REPOSITORY / name).read_text(encoding="utf-8")))
        for name in files
    }
    assert len(set().union(*pins.values())) == 1, pins
    assert all(pins.values()), pins
