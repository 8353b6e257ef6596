from __future__ import annotations

import io
from pathlib import Path

from webapp.embedded.terminal import LogTail, Terminal, visible


def test_a_log_line_cannot_steer_the_terminal() -> None:
    assert visible("\x1b[2J\x07ok\r") == "\\x1b[2J\\x07ok\\r"
    assert visible("reward ≥ 0.5\tü") == "reward ≥ 0.5\tü"


def test_a_log_line_carries_the_name_of_its_process() -> None:
    stream = io.StringIO()
    Terminal(stream).log("web", "started")
    assert stream.getvalue() == "web      | started\n"


def test_steps_are_numbered_and_say_how_long_they_took() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, steps=2)
    with terminal.step("database", note="made once, about 3 s"):
        pass
    with terminal.step("web"):
        pass
    assert stream.getvalue() == "1/2 database … made once, about 3 s\n1/2 database  0.0 s\n2/2 web  0.0 s\n"


def test_where_nobody_watches_the_live_line_is_written_seldom() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.status("step 1")
    terminal.status("step 2")
    assert stream.getvalue() == "step 1\n"


def test_a_tail_gives_whole_lines_that_came_after_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n")
    tail = LogTail("web", log)
    with log.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert tail.lines() == ["one"]
        assert tail.lines() == []
        file.write("o\n")
    assert tail.lines() == ["two"]


def test_a_tail_goes_on_after_the_log_was_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = LogTail("web", log)
    log.write_text("before\n")
    assert tail.lines() == ["before"]
    log.write_text("new\n")
    assert tail.lines() == ["new"]


def test_a_line_without_end_is_given_once_it_is_too_long_to_wait_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = LogTail("web", log)
    log.write_text("x" * 50)
    assert tail.lines(max_bytes=20) == ["x" * 20]
    assert tail.lines(max_bytes=20) == ["x" * 20]
    assert tail.lines(max_bytes=20) == []
