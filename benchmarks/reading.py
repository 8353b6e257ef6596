"""What it costs to open a node and to read a path: CPU time of the site, and the first screen in a browser.

    python -m benchmarks.reading [--browser]

Server figures are CPU milliseconds of one thread through Django's test client, database driver included, the
median of several requests: `cold` decodes the tree, `kept` finds it open. The browser opens a path of 32,000
tokens; its figure is the time from the answer's first byte until the first tokens are drawn.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import parts

COLD, KEPT = 5, 15
# name -> children at each level, tokens of a segment
SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "tiny, 7 nodes": ((2, 2), 20),
    "typical, 85 nodes": ((4, 4, 4), 60),
    "large, 5,461 nodes": ((4,) * 6, 60),
    "huge, 111,111 nodes": ((10,) * 5, 20),
    "path of 32,768 tokens": ((2, 2, 2, 2), 8192),
}


def made_tree(widths: tuple[int, ...], tokens: int) -> Any:
    """A credited tree with token texts and alternatives. `Any`: Django is set up before its module loads."""
    from trainer.credit import credit_plan, credit_trees
    from trainer.presets import PRESETS
    from trainer.tree import FinishReason, Verdict, sampled_tree

    words = [b" the", b" number", b" of", b" divisors", b" is", b" 18", b",", b" so", b" we", b" get", b".\n"]
    parent, level = [-1], [0]
    for width in widths:
        start = len(parent)
        parent += [node for node in level for _ in range(width)]
        level = list(range(start, len(parent)))
    n, random = len(parent), np.random.default_rng(0)
    ids = random.integers(0, len(words), (n, tokens)).astype(np.int32)
    entropies = random.gamma(1, 0.3, (n, tokens)).astype(np.float32)
    tree = sampled_tree(
        problem_id="reading", reference_answer="18", step=1, policy_version=0, parent=parent,
        segment_tokens=list(ids), segment_logprobs=list(-entropies), segment_entropies=list(entropies),
        finish=[FinishReason.NONE] + [FinishReason.LENGTH] * (n - 1),
        texts=[b"".join(words[token] for token in row).decode() for row in ids.tolist()],
        top_tokens=random.integers(0, len(words), (n * tokens, 5)).astype(np.int32),
        top_logprobs=np.full((n * tokens, 5), -1.5, np.float16),
    )  # fmt: skip
    leaf = tree.is_leaf()
    reward = np.where(leaf, random.integers(0, 2, n), np.nan)
    verdict = np.where(leaf, np.where(reward > 0, Verdict.CORRECT, Verdict.INCORRECT), Verdict.NONE)
    tree = tree.with_verdicts(verdict.astype(np.uint8), reward, ["18"] * n)
    tree = tree.with_token_bytes(dict(enumerate(words)))
    (done,) = credit_trees([tree], credit_plan(PRESETS["treerpo-tiny"].config))
    return done


def cpu_milliseconds(deed: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
    figures = []
    for _ in range(repeats):
        before()
        began = time.process_time()
        deed()
        figures.append(1000 * (time.process_time() - began))
    return statistics.median(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description="What it costs to open a node and to read a path.")
    parser.add_argument("--browser", action="store_true", help="the first screen in Chromium, alone")
    arguments = parser.parse_args()
    print(parts.machine())
    with parts.database():
        measure(with_browser=arguments.browser)


def measure(*, with_browser: bool) -> None:
    from django.conf import settings
    from django.test import Client

    from benchmarks.rows import new_run
    from trainer.summary import summarise
    from webapp.trees import opened
    from webapp.trees.models import StoredTree, summary_columns

    run = new_run()
    client = Client(SERVER_NAME="127.0.0.1")
    client.force_login(run.created_by)
    last = 0
    if not with_browser:
        print(f"{'tree':24} {'page':12} {'bytes':>10} {'cold':>8} {'kept':>8}   CPU ms")
    shapes = list(SHAPES.items())[-1:] if with_browser else list(SHAPES.items())
    for seq, (name, (widths, tokens)) in enumerate(shapes, 1):
        tree = made_tree(widths, tokens)
        stored = StoredTree.objects.create(
            run=run, seq=seq, epoch=1, step=seq, index=0, problem_id="reading", prompt=tree.texts[0],
            payload=tree.to_payload(), **summary_columns(summarise(tree)),
        )  # fmt: skip
        leaf = ".".join(["1"] * len(widths))
        for page, path in (
            ()
            if with_browser
            else (
                ("node", f"/t/{stored.id}/n/{leaf}"),
                ("siblings", f"/t/{stored.id}/siblings?n=1"),
                ("diff", f"/t/{stored.id}/diff?a={leaf}&b=2"),
                ("estimators", f"/t/{stored.id}/estimators?n=1"),
                ("tokens", f"/api/v1/trees/{stored.id}/paths/{leaf}/tokens"),
            )
        ):
            answer = client.get(path)
            if answer.status_code != 200:
                sys.exit(f"{path} answered {answer.status_code}")
            ask = partial(client.get, path)
            cold = cpu_milliseconds(ask, opened.forget, COLD)
            kept = cpu_milliseconds(ask, lambda: None, KEPT)
            print(f"{name:24} {page:12} {len(answer.content):>10,} {cold:8.1f} {kept:8.1f}", flush=True)
        last = stored.id
    if with_browser:
        first_screen(f"/t/{last}/n/1.1.1.1?shade=entropy", settings.SESSION_COOKIE_NAME, client)


def first_screen(path: str, cookie: str, client: Any) -> None:
    """Prints the time to the first drawn tokens, of several loads."""
    import threading
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    from django.contrib.staticfiles.handlers import StaticFilesHandler
    from django.core.wsgi import get_wsgi_application
    from playwright.sync_api import sync_playwright

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_arguments: object) -> None: ...

    site = make_server("127.0.0.1", 0, StaticFilesHandler(get_wsgi_application()), handler_class=Quiet)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{site.server_port}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or None, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
        context.add_cookies([{"name": cookie, "value": client.cookies[cookie].value, "url": url}])
        page = context.new_page()
        found = []
        for _ in range(6):
            page.goto(path)
            page.locator(".tok").first.wait_for()
            found.append(
                page.evaluate(
                    """() => {
                        const isTokens = (one) => one.name.includes("/tokens");
                        const tokens = performance.getEntriesByType("resource").find(isTokens);
                        const at = (name) => performance.getEntriesByName(name)[0].startTime;
                        const begin = performance.getEntriesByType("navigation")[0].responseStart;
                        return [at("reader: first tokens") - tokens.responseEnd,
                            tokens.responseEnd - tokens.startTime, at("first-contentful-paint") - begin,
                            document.querySelectorAll(".tok").length];
                    }"""
                )
            )
        browser.close()
    site.shutdown()
    drawn, fetched, text, count = (statistics.median(column) for column in zip(*found[1:], strict=True))
    print(
        f"32,768 tokens in Chromium: text on screen {text:.0f} ms after the first byte; tokens fetched in "
        f"{fetched:.0f} ms, the first drawn {drawn:.0f} ms later; {count:.0f} of them are elements"
    )


if __name__ == "__main__":
    main()
