"""What a page's script imports is told to the browser in the page's head."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.webapp.material import People, add_tree, worked_tree
from webapp.modules import imports_of
from webapp.runs.models import Run

STATIC = Path(__file__).resolve().parents[2] / "webapp/static"
ENTRIES = sorted(f"js/pages/{path.name}" for path in (STATIC / "js/pages").glob("*.js"))


@pytest.mark.parametrize("entry", ENTRIES)
def test_everything_a_page_imports_is_found(entry: str) -> None:
    """Another reading of the same files: any quoted relative path behind a `from`, or an `import` alone."""
    found = set(imports_of(entry))
    for name in (entry, *found):
        text = (STATIC / name).read_text()
        for path in re.findall(r'\bfrom\s*"(\.[^"]+)"|^import "(\.[^"]+)"', text, re.MULTILINE):
            target = (STATIC / name).parent / "".join(path)
            assert str(target.resolve().relative_to(STATIC)) in found | {entry}, (name, path)


def test_what_is_loaded_when_asked_for_is_not_loaded_at_once() -> None:
    found = imports_of("js/pages/tree_detail.js")
    assert "js/tree/walk.js" in found, "four imports deep"
    assert not {"js/tree/graph.js", "js/tree/token_card.js", "vendor/katex.js"} & set(found)


def test_a_trees_head_asks_for_scripts_and_numbers(run: Run, people: People) -> None:
    stored = add_tree(run, 5, worked_tree(5))
    head = people.client("viewer").get(f"/t/{stored.id}/").content.decode().partition("</head>")[0]
    assert f'as="fetch" crossorigin="anonymous" href="/api/v1/trees/{stored.id}/columns?v=' in head
    assert re.search(r'rel="modulepreload" href="[^"]*js/tree/walk[^"]*\.js"', head)
