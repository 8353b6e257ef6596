from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from pytest_django import Settings

from webapp.accounts.models import User
from webapp.accounts.services import create_login_link
from webapp.projects.demo import ensure_demo
from webapp.projects.models import Dataset, ModelSource, Project
from webapp.runs.models import Run


@pytest.mark.django_db
def test_the_demo_is_made_once() -> None:
    first = ensure_demo()
    assert (first.project_slug, first.created) == ("demo", True)
    run = Run.objects.get(id=first.run_id)
    assert (run.status, run.preset, run.name) == ("queued", "treerpo-tiny", "TreeRPO · tiny")
    assert not first.admin.has_usable_password()
    assert not first.admin.is_superuser
    second = ensure_demo()
    assert (second.run_id, second.created) == (first.run_id, False)
    Run.objects.update(status="stopped", ended_at=Now())
    assert ensure_demo() == second
    counts = [model.objects.count() for model in (User, Project, Dataset, ModelSource, Run)]
    assert counts == [1, 1, 1, 1, 1]
    assert Dataset.objects.get().spec == run.config["data"]


@pytest.mark.django_db
def test_the_admins_link_opens_the_run() -> None:
    demo = ensure_demo()
    client = Client()
    page = client.post(create_login_link(demo.admin), follow=True)
    assert page.redirect_chain == [("/", 302), ("/p/demo/", 302)]
    assert f"/r/{demo.run_id}/" in page.content.decode()


@pytest.mark.django_db(transaction=True)
def test_two_demos_at_once_make_one() -> None:
    def make(_: int) -> int:
        try:
            return ensure_demo().run_id
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(make, range(4)))) == 1


# ------------------------------------------------------------------------------------------------ datasets


def line(n: int) -> str:
    return f'{{"question": "{n} + 1?", "answer": "#### {n + 1}"}}\n'


@pytest.fixture
def lab(db: None, tmp_path: Path, settings: Settings) -> Path:
    Project.objects.create(slug="lab", name="Lab")
    settings.DATA_DIR = tmp_path / "data"
    return tmp_path


def test_a_dataset_is_checked_copied_and_offered(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lab / "sums.jsonl"
    file.write_text("".join(line(n) for n in range(20)) + '{"question": "cut of\n')
    call_command("import_dataset", "lab", str(file))
    said = capsys.readouterr()
    assert said.out == "imported 20 problems as sums, 1 skipped\n"
    assert said.err.startswith("line 21: ")
    dataset = Dataset.objects.get()
    copy = Path(dataset.spec["path"])
    assert copy.read_bytes() == file.read_bytes()
    assert copy.is_relative_to(lab / "data")
    assert (dataset.spec["kind"], dataset.n_problems, dataset.sha256) == ("jsonl", 20, copy.stem)
    file.unlink()  # what a run trains on stays
    assert copy.exists()


def test_what_a_file_holds_does_not_steer_the_terminal(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = '{"\\u001b[2J\\u001b]0;pwned\\u0007": "a"}\n'
    file = lab / "sums.jsonl"
    file.write_text("".join(line(n) for n in range(20)) + hostile)
    call_command("import_dataset", "lab", str(file))
    said = capsys.readouterr()
    assert "\x1b" not in said.err
    assert "\\x1b[2J" in said.err
    assert said.err.startswith("line 21: ")
    file.write_text(hostile)
    with pytest.raises(CommandError, match=r"\\x1b\[2J") as refused:
        call_command("import_dataset", "lab", str(file))
    assert "\x1b" not in str(refused.value)


def test_the_same_name_twice_is_refused(lab: Path) -> None:
    file = lab / "sums.jsonl"
    file.write_text("".join(line(n) for n in range(20)))
    call_command("import_dataset", "lab", str(file))
    with pytest.raises(CommandError, match="Choose another --name"):
        call_command("import_dataset", "lab", str(file))
    call_command("import_dataset", "lab", str(file), "--name", "Sums, again")
    assert set(Dataset.objects.values_list("slug", flat=True)) == {"sums", "sums-again"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b'{"question": "a"}\n', "needed: `question`, `answer`"),
        (b'{"question": "a", "answer": "no mark"}\n', "line 1"),
        (b"\x80\x04\x95", "pickle"),
        (b"\xff\xfe{\x00", "UTF-16"),
        (b'{"question": "\xff", "answer": "#### 1"}\n', "not UTF-8"),
        (b'{"question": "a", "answer": NaN}\n', "line 1"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_leaves_nothing(lab: Path, content: bytes, said: str) -> None:
    file = lab / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(CommandError, match=said):
        call_command("import_dataset", "lab", str(file))
    assert Dataset.objects.count() == 0
    assert not (lab / "data" / "datasets").exists()


def test_models_are_added_by_folder(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lab / "model"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CommandError, match="never loaded"):
        call_command("add_model", "mine", str(folder))
    (folder / "model.safetensors").write_bytes(b"")
    call_command("add_model", "mine", str(folder), "--name", "Mine")
    source = ModelSource.objects.get()
    assert (source.slug, source.name, source.path) == ("mine", "Mine", str(folder))
    with pytest.raises(CommandError, match="already exists"):
        call_command("add_model", "mine", str(folder))
    with pytest.raises(CommandError, match="not absolute"):
        call_command("add_model", "other", "../etc")
    with pytest.raises(CommandError, match="valid"):
        call_command("add_model", "a/b", str(folder))
    call_command("add_model", "far", "/nowhere/on/this/machine")
    assert "must be on every worker" in capsys.readouterr().err


def test_a_first_user_can_start_a_run(db: None) -> None:
    out = StringIO()
    call_command("create_user", "ada", "--project", "fresh", "--role", "admin", stdout=out)
    client = Client()
    client.post(out.getvalue().strip())
    body = '{"name": "first", "config": {}}'
    created = client.post("/api/v1/projects/fresh/runs", body, content_type="application/json")
    assert created.status_code == 201


def test_a_file_that_is_not_there_and_a_project_that_is_not(lab: Path) -> None:
    with pytest.raises(CommandError, match="not there"):
        call_command("import_dataset", "lab", str(lab / "nothing.jsonl"))
    with pytest.raises(CommandError, match="Known: lab"):
        call_command("import_dataset", "nowhere", str(lab / "nothing.jsonl"))


def test_a_parquet_file_and_a_data_set_by_name_are_offered_too(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.table(
        {"problem": [f"{n} + 1?" for n in range(40)], "result": [str(n + 1) for n in range(40)]}
    )
    file = lab / "sums.parquet"
    pyarrow.parquet.write_table(table, file)
    columns = ("--question-column", "problem", "--answer-column", "result", "--answer-form", "plain")
    call_command("import_dataset", "lab", str(file), *columns)
    assert "problems as sums" in capsys.readouterr().out
    spec = Dataset.objects.get(slug="sums").spec
    assert (spec["kind"], spec["question_column"], spec["answer_form"]) == ("parquet", "problem", "plain")
    assert Path(spec["path"]).read_bytes() == file.read_bytes()
    with pytest.raises(CommandError, match="has no column `question`"):
        call_command("import_dataset", "lab", str(file), "--name", "other")
    call_command("import_dataset", "lab", "someone/sums", "--hub", "--split", "test", "--name", "Hub sums")
    spec = Dataset.objects.get(slug="hub-sums").spec
    assert (spec["kind"], spec["name"], spec["split"]) == ("datasets", "someone/sums", "test")
