"""Rooms, one direction: trainer knows nobody, webapp knows the trainer's words, workers know both; the client
knows those words and HTTP.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("trainer", "webapp", "workers", "client")
WEB_WORLD = {
    "asgiref",
    "celery",
    "channels",
    "django",
    "django_htmx",
    "kombu",
    "ninja",
    "psycopg",
    "psycopg_pool",
    "redis",
    "uvicorn",
    "webapp",
    "workers",
}
HEAVY = {"accelerate", "datasets", "safetensors", "tokenizers", "torch", "transformers", "vllm"}
# What the web process may know of the trainer. Each of them must import without a heavy module.
WORDS = {
    "trainer.cliffs",
    "trainer.clipping",
    "trainer.comparison",
    "trainer.config",
    "trainer.config_file",
    "trainer.credit",
    "trainer.explanation",
    "trainer.forking",
    "trainer.data",
    "trainer.edit_distance",
    "trainer.events",
    "trainer.guards",
    "trainer.intervals",
    "trainer.loss_weights",
    "trainer.metrics",
    "trainer.payload",
    "trainer.presets",
    "trainer.schema",
    "trainer.summary",
    "trainer.text",
    "trainer.token_means",
    "trainer.token_texts",
    "trainer.tree",
    "trainer.tree_lines",
    "trainer.tree_rows",
}


def sources(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever in the file it stands; `from a import b` is a.b and a."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def is_in(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def found(room: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(room)
        for line, name in imports(path)
        if is_in(name, forbidden)
    ]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    show = "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    script = f"import sys\n{statement}\n{show}"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_sources_and_an_empty_door(room: str) -> None:
    assert len(sources(room)) > 3
    filled = [path for path in sources(room) if path.name == "__init__.py" and path.read_text().strip()]
    assert filled == []


def test_trainer_knows_no_web_no_queue_no_database() -> None:
    assert found("trainer", WEB_WORLD) == []


def test_webapp_knows_no_workers() -> None:
    assert found("webapp", {"workers"}) == []


def test_webapp_knows_only_the_trainers_words() -> None:
    strangers = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources("webapp")
        for line, name in imports(path)
        if is_in(name, {"trainer"}) and not is_in(name, WORDS)
    ]
    assert strangers == []


def test_the_client_knows_the_server_by_http_alone() -> None:
    """And `trainer.cli`, whose commands need no server."""
    assert found("client", WEB_WORLD) == []
    assert found("client", {"trainer"}) == [
        line
        for line in found("client", {"trainer"})
        if "trainer.cli" in line or "trainer.config_file" in line
    ]
    loaded = loaded_by("import client.cli; client.cli._parser()")
    assert loaded & (HEAVY | WEB_WORLD | {"numpy", "pydantic", "trainer"}) == set()


@pytest.mark.parametrize("room", ["webapp", "workers", "client"])
def test_heavy_modules_are_imported_by_the_trainer_alone(room: str) -> None:
    assert found(room, HEAVY) == []


def test_only_one_file_may_know_vllm() -> None:
    knowing = {line.partition(":")[0] for line in found("trainer", {"vllm"})}
    assert knowing <= {"trainer/sampling/vllm_engine.py"}


@pytest.mark.parametrize("word", sorted(WORDS))
def test_a_word_loads_nothing_heavy(word: str) -> None:
    assert loaded_by(f"import {word}") & (HEAVY | WEB_WORLD) == set()


def test_the_web_process_loads_nothing_heavy() -> None:
    loaded = loaded_by(
        "import os; os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'webapp.settings'); import webapp.asgi"
    )
    assert "django" in loaded
    assert loaded & (HEAVY | {"workers"}) == set()


def test_the_trainer_loads_no_web() -> None:
    loaded = loaded_by("import trainer.loop, trainer.__main__")
    assert "torch" in loaded
    assert loaded & WEB_WORLD == set()


@pytest.mark.parametrize(
    "package", sorted(p.parent.relative_to(ROOT).as_posix() for p in ROOT.glob("trainer/**/__init__.py"))
)
def test_trainer_modules_do_no_work_when_imported(package: str) -> None:
    """No module of the trainer starts threads, touches the environment or writes when it is imported."""
    for path in (ROOT / package).glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                pytest.fail(f"{path.relative_to(ROOT)}:{node.lineno} calls something when it is imported")


def test_nothing_unpickles_or_evaluates() -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    assert [line for room in ROOMS for line in found(room, forbidden)] == []
    calls = []
    for room in ROOMS:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    if name in (
                        "eval",
                        "exec",
                        "compile",
                        "__import__",
                        "torch.load",
                        "torch.save",
                        "yaml.load",
                        "os.system",
                    ):
                        calls.append(f"{path.relative_to(ROOT)}:{node.lineno} calls {name}")
                    for keyword in node.keywords:
                        is_trusting = (
                            keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
                        )
                        if is_trusting or (keyword.arg == "shell" and ast.unparse(keyword.value) == "True"):
                            calls.append(f"{path.relative_to(ROOT)}:{node.lineno} sets {keyword.arg}")
    assert calls == []
