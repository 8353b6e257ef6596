"""A tree's page in a real browser: first paint, frames while panning and zooming, sizes, memory.

    python -m benchmarks.tree_page --nodes 100000 1000000

Trees are synthetic (`manage.py make_forest`). The browser is Chromium without a GPU and without a frame
limit, so a frame takes what painting takes; frames are timed from one animation frame to the next while the
window moves in every frame. On a busy machine times are too long: the load is printed.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks import parts

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-frame-rate-limit",
    "--enable-precise-memory-info",
    "--js-flags=--expose-gc",
]
FRAMES = 150
# When the picture was there: the frame after the page said so.
READY = """
    new MutationObserver((_, observer) => {
        if (!document.querySelector("#tree-layout[data-ready]")) return;
        observer.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(() => { window.paintedAt = performance.now(); }));
    }).observe(document, {subtree: true, attributes: true, childList: true});
"""
# Where the time to the first picture went, milliseconds from the start.
PARTS = """
(() => {
    const page = performance.getEntriesByType("navigation")[0];
    const numbers = performance.getEntriesByType("resource").find(({name}) => name.includes("/columns"));
    const ms = (x) => x.toFixed(0);
    return `page: first byte ${ms(page.responseStart)}, last ${ms(page.responseEnd)}; columns: `
        + `asked ${ms(numbers.startTime)}, last ${ms(numbers.responseEnd)}`;
})()
"""
MOVE = """
async ({how, frames}) => {
    const canvas = document.getElementById("icicle");
    canvas.focus();
    const box = canvas.getBoundingClientRect();
    const at = (x) => ({clientX: box.left + x, clientY: box.top + 40, bubbles: true, view: window});
    const wheel = (deltaY) => canvas.dispatchEvent(
        new WheelEvent("wheel", {...at(box.width * 0.37), deltaY, cancelable: true}));
    const frame = () => new Promise((done) => requestAnimationFrame(() => done(performance.now())));
    if (how === "pan") {
        for (let i = 0; i < 12; i++) wheel(-250);
        await frame();
        canvas.dispatchEvent(new MouseEvent("mousedown", at(box.width / 2)));
    }
    const times = [];
    let before = await frame();
    for (let i = 0; i < frames; i++) {
        if (how === "zoom") wheel(i < frames / 2 ? -60 : 60);
        else window.dispatchEvent(new MouseEvent("mousemove", at(box.width / 2 + 300 * Math.sin(i / 8))));
        const now = await frame();
        times.push(now - before);
        before = now;
    }
    if (how === "pan") window.dispatchEvent(new MouseEvent("mouseup", at(0)));
    document.getElementById("fit-tree").click();
    return times;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument(
        "--turns", type=int, default=3, help="trees of each size, opened twice; medians are told"
    )
    options = parser.parse_args()
    print(parts.machine())
    with parts.database():
        from django.core.management import call_command

        from webapp.accounts.models import User
        from webapp.accounts.services import create_login_link
        from webapp.trees.models import StoredTree

        user = User.objects.create_user("benchmark")
        call_command("make_forest", "--trees", "1", "--nodes", "85")
        for nodes in options.nodes:
            for turn in range(options.turns):
                call_command("make_forest", "--trees", "1", "--nodes", str(nodes), "--seed", str(turn))
        trees = list(StoredTree.objects.order_by("n_nodes").values_list("id", "n_nodes"))
        link = create_login_link(user)
        with parts.web(port := parts.free_port()):
            _measure(f"http://127.0.0.1:{port}", link, trees)


def _measure(site: str, link: str, trees: list[tuple[int, int]]) -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(base_url=site, viewport={"width": 1400, "height": 900})
        page = context.new_page()
        page.goto(link)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(lambda url: "/login/" not in url)
        page.close()
        _open(context, trees[0][0])  # so that the site and the browser have their scripts, not the trees
        by_size = itertools.groupby(trees[1:], key=lambda tree: round(tree[1], -3))
        for nodes, alike in ((nodes, [tree for tree, _ in group]) for nodes, group in by_size):
            # Each tree has one first viewer; the next finds it open.
            first, turned = [], []
            for tree in alike:
                first.append(_open(context, tree))
                turned.append(_open(context, tree))
            _sizes(context, alike[0], nodes)
            for word, found in (("its first viewer", first), ("the tree kept open by the server", turned)):
                print(f"  first paint, {word}:", *(f"{one['painted']:.0f}" for one in found), "ms")
                print(f"    {found[-1]['parts']}")
            for how in ("pan", "zoom"):
                p50 = statistics.median(one[how][0] for one in turned)
                p95 = statistics.median(one[how][1] for one in turned)
                print(f"  {how}: frames p50 {p50:.1f} ms, p95 {p95:.1f} ms")
            print(f"  memory of the page: {turned[-1]['heap'] / 2**20:.1f} MiB")
        _scripts(context, trees[0][0])
        browser.close()


def _sizes(context: Any, tree: int, nodes: int) -> None:
    """`Any`: a Playwright context."""
    response = context.request.get(f"/api/v1/trees/{tree}/columns", headers={"Accept-Encoding": "identity"})
    raw = response.body()
    print(f"{nodes:,} nodes: columns {len(raw) / 1e6:.2f} MB, {len(raw) / nodes:.1f} bytes a node", end="")
    from webapp.trees.columns import encoded

    for word in ("gzip", "zstd"):
        body, _ = encoded(raw, word)
        print(f", {word} {len(body) / 1e6:.2f} MB", end="")
    print()


def _open(context: Any, tree: int) -> dict[str, Any]:
    page = context.new_page()
    page.add_init_script(READY)
    page.goto(f"/t/{tree}/")
    # Not `wait_for_function`: it evaluates a text, which the site's policy forbids.
    for _ in range(1200):
        if painted := page.evaluate("window.paintedAt"):
            break
        page.wait_for_timeout(50)
    else:
        raise SystemExit("The page was not painted within a minute.")
    found: dict[str, Any] = {"painted": painted, "parts": page.evaluate(PARTS)}
    page.wait_for_timeout(1500)
    for how in ("pan", "zoom"):
        times = sorted(page.evaluate(MOVE, {"how": how, "frames": FRAMES}))
        found[how] = (statistics.median(times), times[int(0.95 * len(times))])
        page.wait_for_timeout(500)
    found["heap"] = page.evaluate("gc(), performance.memory.usedJSHeapSize")
    page.close()
    return found


def _scripts(context: Any, tree: int) -> None:
    """What a browser loads as scripts for a tree's page, each file gzipped."""
    page = context.new_page()
    page.goto(f"/t/{tree}/?view=graph")
    page.wait_for_selector("#tree-layout[data-graph]")
    paths = page.evaluate("performance.getEntriesByType('resource').map(({name}) => new URL(name).pathname)")
    static = Path(__file__).resolve().parents[1] / "webapp"
    files = [static / path.lstrip("/") for path in paths if re.search(r"^/static/.*\.js$", path)]
    size = sum(len(gzip.compress(file.read_bytes())) for file in files)
    print(f"scripts of the page, the graph's included: {len(files)} files, {size / 1000:.1f} kB gzip")
    page.close()


if __name__ == "__main__":
    main()
