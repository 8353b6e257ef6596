from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.embedded import leftovers, processes
from webapp.embedded.processes import Identity
from workers import child as children
from workers import limits
from workers.child import MARK, Lines, TrainerChild, temporary_folder


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_come_out_whole_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cutter, found = Lines(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += cutter.feed(stream[:size])
        stream = stream[size:]
    assert found == lines
    assert not cutter.is_overlong


@pytest.mark.parametrize(("size", "overlong"), [(9, False), (10, False), (11, True)])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_line_limit(monkeypatch: pytest.MonkeyPatch, size: int, overlong: bool, end: bytes) -> None:
    monkeypatch.setattr(children, "MAX_LINE_BYTES", 10)
    cutter = Lines()
    first = cutter.feed(b"ok\n" + b"x" * size + end)
    assert cutter.is_overlong == overlong
    assert first == [b"ok", *([b"x" * size] if end and not overlong else [])]
    if overlong:
        assert cutter.feed(b"more\n") == []


def start(tmp_path: Path, code: str, log: Path | None = None) -> TrainerChild:
    return TrainerChild(
        [sys.executable, "-c", code],
        mark=f"1-1-{secrets.token_hex(4)}",
        env={
            **os.environ,
            "ARBORIST_SECRET_KEY": "s3cret",
            "ARBORIST_DATABASE_URL": "postgresql://x",
            "HF_TOKEN": "s3cret",
            "PGPASSWORD": "s3cret",
            "AWS_SECRET_ACCESS_KEY": "s3cret",
            "OMP_NUM_THREADS": "1",
        },
        cwd=tmp_path,
        log=log or tmp_path / "log",
    )


def read_all(child: TrainerChild) -> list[bytes]:
    lines: list[bytes] = []
    deadline = time.monotonic() + 20
    while not child.is_silent and time.monotonic() < deadline:
        lines += child.read(0.1)
    return lines


@pytest.mark.process
def test_child_gets_no_secret_and_a_mark(tmp_path: Path) -> None:
    child = start(tmp_path, "import os, json; print(json.dumps(dict(os.environ)))")
    (line,) = read_all(child)
    assert child.end() == 0
    seen = json.loads(line)
    assert {MARK, "PATH"} <= seen.keys()
    assert seen["OMP_NUM_THREADS"] == "1"
    assert "s3cret" not in seen.values()
    assert not {"ARBORIST_DATABASE_URL", "DJANGO_SETTINGS_MODULE"} & seen.keys()
    assert seen["HF_HUB_OFFLINE"] == "1"


@pytest.mark.process
def test_standard_error_goes_to_the_log_and_its_tail_is_kept(tmp_path: Path) -> None:
    child = start(tmp_path, "import sys; sys.stderr.write('a' * 20000 + 'the end')")
    assert read_all(child) == []
    assert child.end() == 0
    assert child.error_tail().endswith("the end")
    assert len(child.error_tail()) == limits.STDERR_TAIL_BYTES
    assert len((tmp_path / "log").read_text()) == 20007


@pytest.mark.process
def test_a_full_disk_costs_the_log_and_nothing_else(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('the last words'); print('{}', flush=True)"
    child = start(tmp_path, code, Path("/dev/full"))
    assert read_all(child) == [b"{}"]
    assert child.end() == 0
    assert child.error_tail() == "the last words"


@pytest.mark.process
def test_held_output_stays_in_the_pipe(tmp_path: Path) -> None:
    child = start(tmp_path, "print('one', flush=True)")
    deadline = time.monotonic() + 20
    while child.is_alive() and time.monotonic() < deadline:
        assert child.read(0.05, hold=True) == []
    assert read_all(child) == [b"one"]
    child.end()


@pytest.mark.process
def test_child_dies_with_its_supervisor(tmp_path: Path) -> None:
    """Both ways: the kernel's signal, and the pipe that the trainer watches."""
    mark = f"1-1-{secrets.token_hex(4)}"
    script = f"""
import sys, time
from pathlib import Path
from workers.child import TrainerChild
code = "import time; print('ready', flush=True); time.sleep(600)"
log = Path({str(tmp_path / "log")!r})
child = TrainerChild([sys.executable, "-c", code], mark={mark!r}, env={{}}, cwd=Path("."), log=log)
while not child.read(1): pass
print(child.identity.pid, child.identity.started, flush=True)
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    pid, started = map(int, supervisor.stdout.readline().split())
    trainer = Identity(pid, started)
    assert trainer.is_alive()
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert processes.wait_until(lambda: not trainer.is_alive(), 5)
    # What it left behind is the reaper's to remove.
    assert temporary_folder(mark).is_dir()
    leftovers.write(tmp_path, 1, 1, mark, trainer)
    assert leftovers.reap(tmp_path, lambda _run, _epoch: False) == 1
    assert not temporary_folder(mark).exists()


@pytest.mark.process
def test_what_a_trainer_leaves_in_its_temporary_folder_goes_with_it(tmp_path: Path) -> None:
    child = start(tmp_path, "import tempfile; print(tempfile.mkdtemp(), flush=True)")
    (line,) = read_all(child)
    assert Path(line.decode()).parent == temporary_folder(child.mark)
    assert Path(line.decode()).is_dir()
    child.end()
    assert not temporary_folder(child.mark).exists()


@pytest.mark.process
@pytest.mark.parametrize("is_frozen", [True, False])
def test_child_ends_when_its_supervisor_is_frozen(tmp_path: Path, is_frozen: bool) -> None:
    """The death signal and the closed pipe never come; the beats stop."""
    code = """
import sys, time
from trainer import supervised
supervised.SILENT_SECONDS, supervised.LISTEN_SECONDS = 1.0, 0.25
supervised.end_with_parent(int(sys.argv[2]))
print("ready", flush=True)
time.sleep(600)
"""
    mark = f"1-1-{secrets.token_hex(4)}"
    script = f"""
import sys, time
from pathlib import Path
from workers import child
child.BEAT_SECONDS = 0.1
log = Path({str(tmp_path / "log")!r})
one = child.TrainerChild([sys.executable, "-c", {code!r}], mark={mark!r}, env={{}}, cwd=Path("."), log=log)
while not one.read(1): pass
print(one.identity.pid, one.identity.started, flush=True)
time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    trainer = Identity(*map(int, supervisor.stdout.readline().split()))
    time.sleep(0.5)  # it has heard a beat
    if is_frozen:
        supervisor.send_signal(signal.SIGSTOP)
    assert processes.wait_until(lambda: not trainer.is_alive(), 10 if is_frozen else 2.5) == is_frozen
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert processes.wait_until(lambda: not trainer.is_alive(), 5)
    shutil.rmtree(temporary_folder(mark))


@pytest.mark.process
def test_reaper_ends_what_a_dead_trainer_left_in_its_group(tmp_path: Path) -> None:
    # A verifier's process is given no environment, so it carries no mark; its group is the trainer's.
    code = (
        "import subprocess, sys\n"
        "argv = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "p = subprocess.Popen(argv, env={})\n"
        "print(p.pid, flush=True)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    identity = Identity.of(trainer.pid)
    assert trainer.stdout is not None
    assert identity is not None
    left = Identity.of(int(trainer.stdout.readline()))
    assert left is not None
    trainer.stdout.close()
    assert trainer.wait(10) == 0  # reaped: its pid is nobody's
    note = leftovers.write(tmp_path, 7, 2, f"7-2-{tmp_path.name}", identity)
    note.write_text(note.read_text().replace(f'"supervisor": [{os.getpid()}', '"supervisor": [999999'))
    assert leftovers.reap(tmp_path) == 1
    assert processes.wait_until(lambda: not left.is_alive(), 5)


def test_reaper_ends_the_dead_first_when_it_cannot_ask_about_the_others(tmp_path: Path) -> None:
    ours = leftovers.write(tmp_path, 1, 1, "1-1-ours", None)
    dead = leftovers.write(tmp_path, 2, 1, "2-1-dead", None)
    dead.write_text(dead.read_text().replace(f'"supervisor": [{os.getpid()}', '"supervisor": [999999'))

    def away(_run: int, _epoch: int) -> bool:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        leftovers.reap(tmp_path, away)
    assert (ours.exists(), dead.exists()) == (True, False)


@pytest.mark.process
def test_reaper_ends_the_trainer_of_a_dead_supervisor_and_what_it_started(tmp_path: Path) -> None:
    # Neither net holds: no death signal, no watched pipe, and a grandchild in a session of its own.
    code = (
        "import subprocess, sys, time\n"
        "argv = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "p = subprocess.Popen(argv, start_new_session=True)\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    mark = f"7-2-{tmp_path.name}"
    trainer = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, MARK: mark},
    )
    assert trainer.stdout is not None
    grandchild = Identity.of(int(trainer.stdout.readline()))
    identity = Identity.of(trainer.pid)
    assert grandchild is not None
    assert identity is not None
    note = leftovers.write(tmp_path, 7, 2, mark, identity)

    # We are its supervisor and live.
    assert leftovers.reap(tmp_path) == 0
    assert trainer.poll() is None
    # The attempt is not current any more: as with a supervisor that is frozen.
    assert leftovers.reap(tmp_path, lambda run_id, epoch: (run_id, epoch) != (7, 2)) == 1
    assert trainer.wait(5) == -9
    trainer.stdout.close()
    assert processes.wait_until(lambda: not grandchild.is_alive(), 5)
    assert not note.exists()


def test_reaper_leaves_alone_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "elsewhere.json").write_text('{"here": "another machine"}')
    # A pid that was used again: the start time differs.
    path = leftovers.write(tmp_path, 1, 1, "1-1-nobody", Identity(os.getpid(), 1))
    text = path.read_text().replace(f'"supervisor": [{os.getpid()}', '"supervisor": [999999')
    path.write_text(text)
    leftovers.reap(tmp_path)
    assert not path.exists()
    assert (tmp_path / "elsewhere.json").exists()
