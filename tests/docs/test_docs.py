"""The docs are tested: the reference is current, and every link and named file exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.guards import TROUBLES
from trainer.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
CODE_PATH = re.compile(
    r"`((?:client|trainer|webapp|workers|tests|docs|scripts|docker|benchmarks|templates)/[\w./-]+)`"
)


def test_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "write_reference.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = [
        target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")
    ]
    missing = [target for target in links if not (page.parent / target).exists()]
    missing += [name for name in CODE_PATH.findall(text) if not (ROOT / name).exists()]
    assert not missing, f"{page.relative_to(ROOT)} names what does not exist: {missing}"


def test_every_trouble_is_said_somewhere() -> None:
    """By its name, or by the words that the page quotes."""
    source = "".join(
        path.read_text()
        for room in ("trainer", "workers", "webapp")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "guards.py"
    )
    own = (ROOT / "trainer" / "guards.py").read_text()
    for name, trouble in TROUBLES.items():
        longest = max(re.split(r"\{[^}]*\}", trouble.says), key=len).strip(" ;(")
        is_named = f'"{name}"' in source or f'TROUBLES["{name}"]' in own
        assert is_named or longest in source, f"nothing says {trouble.says!r}"


def test_every_preset_has_its_formula_in_the_estimators_page() -> None:
    text = (ROOT / "docs" / "estimators.md").read_text()
    missing = [
        preset.slug
        for preset in PRESETS.values()
        if f"`{preset.slug}`" not in text or preset.source not in text
    ]
    assert not missing, f"docs/estimators.md does not explain {missing}"


def test_estimators_page_names_functions_and_tests_that_exist() -> None:
    text = (ROOT / "docs" / "estimators.md").read_text()
    modules = "values|advantages|credit|rewards|rollouts|loss_weights|losses|optim"
    functions = set(re.findall(rf"`((?:{modules})\.\w+)`", text))
    functions -= {path for preset in PRESETS.values() for path in preset.unverified}  # of the config
    assert len(functions) > 15
    gone = []
    for name in functions:
        module, _, function = name.partition(".")
        source = (ROOT / "trainer" / f"{module}.py").read_text()
        if not re.search(rf"^(?:def|class) {function}\b", source, re.MULTILINE):
            gone.append(name)
    tests = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    assert len(tests) > 30
    gone += [f"{page}::{test}" for page, test in tests if f"def {test}(" not in (ROOT / page).read_text()]
    assert not gone, f"docs/estimators.md names what does not exist: {gone}"


def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
