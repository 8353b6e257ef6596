"""`arborist`: runs, queue and workers of a server, from a shell; and the estimators, which need none.

    arborist run create -f run.yaml --set training.steps=50 --project lab
    arborist run ls | show 12 | watch 12
    arborist run pause 12 | resume 12 | stop 12 [--now] | retry 12
    arborist run clone 12 --set seed=2 | fork 12 --set training.steps=500
    arborist queue
    arborist workers
    arborist credit … | tokens … | presets | probe …      need no server: `arborist credit --help`

Exit status: 0 done; 1 a fault; 2 what was typed, set or sent cannot be used; 3 the server refused; 4 it
cannot be reached now; 5 `watch` saw the run end otherwise than succeeded. Errors are sentences on stderr.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from client import words
from client.account import account
from client.errors import ClientError, UnreachableError, UsageError
from client.server import Server

OWN = ("run", "queue", "workers")
LOCAL = ("credit", "tokens", "presets", "probe")
ENDED = ("succeeded", "stopped", "failed", "cancelled")
WATCH_SECONDS = 2.0
PATIENCE_SECONDS = 600.0  # so long `watch` waits for a server that went away
ENDED_BADLY = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, print. Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in LOCAL:
        from trainer.cli import main as local  # numpy and the presets come with it

        return local(given)
    options = _parser().parse_args(given)
    try:
        for line in options.do(options, Server(account())):
            print(words.safe(line), flush=True)  # noqa: T201
    except ClientError as error:
        print(words.safe_lines(f"arborist {given[0]}: {error}"), file=sys.stderr)  # noqa: T201
        return error.status
    except BrokenPipeError:  # `arborist … | head`
        sys.stderr.close()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return int(getattr(options, "exit_status", 0))


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None  # noqa: S101 (it stands above)
    parser = argparse.ArgumentParser(
        prog="arborist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,queue,workers,…}")
    run = commands.add_parser("run", help="make, read and control runs").add_subparsers(required=True)

    create = _verb(run, "create", _create, "make a run from a YAML file and queue it")
    create.add_argument("-f", "--file", required=True, metavar="YAML", help="the config; - is standard input")
    create.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="training.steps=50")
    create.add_argument("--project", help="slug; needed where you are in more than one")
    create.add_argument("--name", help="default: the file's name")

    listed = _verb(run, "ls", _list, "runs of a project, the newest first")
    listed.add_argument("--project", help="slug; default: all of yours")
    listed.add_argument("--status", help="only those, with commas: running,queued")
    listed.add_argument("-n", type=_count, default=20, metavar="N", help="at most so many per project (20)")

    _of_run(_verb(run, "show", _show, "one run: where it stands, its attempts"))
    watch = _of_run(_verb(run, "watch", _watch, "a line whenever it moves, until it ends"))
    watch.add_argument("--every", type=float, default=WATCH_SECONDS, metavar="SECONDS", help="(2)")
    _of_run(_verb(run, "pause", _action("pause"), "save a checkpoint, free the machine, and wait"))
    _of_run(_verb(run, "resume", _action("resume"), "queue a paused run again"))
    stop = _of_run(_verb(run, "stop", _stop, "save a checkpoint and stop; cancel what waits"))
    stop.add_argument("--now", action="store_true", help="at once: what follows the last checkpoint is lost")
    _of_run(_verb(run, "retry", _action("retry"), "queue a run again that failed or was stopped"))
    fork = _of_run(_verb(run, "fork", _fork, "a new run that begins with one of its checkpoints"))
    fork.add_argument("--step", type=_count, metavar="N", help="of the checkpoint; default: the newest kept")
    fork.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="training.steps=500")
    fork.add_argument("--name", help="default: that of the run, and fork")

    clone = _of_run(_verb(run, "clone", _clone, "a new run with its config, from the base model"))
    clone.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="seed=2")
    clone.add_argument("--name", help="default: that of the run, with the next number")

    _verb(commands, "queue", _queue, "what waits, in order, with the reason and the expected start")
    _verb(commands, "workers", _workers, "workers: state, machine, what they work on")
    for name in LOCAL:
        commands.add_parser(name, add_help=False)  # known to the help; done by trainer.cli
    return parser


Do = Callable[[argparse.Namespace, Server], Iterable[str]]


def _verb(commands: Any, name: str, do: Do, told: str) -> argparse.ArgumentParser:
    """`Any`: argparse keeps the type of sub-commands to itself."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=told, description=told)
    parser.add_argument("--json", action="store_true", help="what the API says, for programs")
    parser.set_defaults(do=do)
    return parser


def _of_run(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("run", type=_count, metavar="ID", help="the run's number")
    return parser


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a run, such as 12")
    return int(text)


# ------------------------------------------------------------------------------------------------ runs


def _create(options: argparse.Namespace, server: Server) -> Iterator[str]:
    content = _content(options.file)
    name = options.name or ("run" if options.file == "-" else Path(options.file).stem)
    config = _config(content, options.set)
    project = options.project or server.account.project or _only_project(server)
    body = {"name": name, "config": config, "idempotency_key": secrets.token_urlsafe(16)}
    run = _sent_once(server, f"/projects/{_slug(project)}/runs", body)
    if options.json:
        yield _json(run)
        return
    yield f"run {run['id']} {words.safe(run['name'])}: {words.safe(run['status'])}"
    yield f"  {server.page(run['url'])}"


def _sent_once(server: Server, path: str, body: dict[str, Any]) -> Any:
    """The key makes one run of two sendings, so a lost answer is asked for again."""
    try:
        return server.post(path, body)
    except UnreachableError:
        return server.post(path, body)


def _content(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _config(content: bytes, overrides: Sequence[str]) -> dict[str, Any]:
    from trainer.config_file import ConfigError, config_from_yaml

    try:
        return config_from_yaml(content, overrides).model_dump(mode="json")
    except ConfigError as error:
        raise UsageError(
            f"the config cannot be used:\n  {str(error).replace(chr(10), chr(10) + '  ')}"
        ) from error


def _only_project(server: Server) -> str:
    slugs = [str(project["slug"]) for project in server.get("/projects")]
    if len(slugs) == 1:
        return slugs[0]
    known = ", ".join(slugs) or "none that you are in"
    raise UsageError(f"Which project? Give --project. There are: {known}.")


def _slug(text: str) -> str:
    if not text.replace("-", "").replace("_", "").isalnum() or not text.isascii():
        raise UsageError(f"{text[:80]!r} is no project; a slug has letters, digits, - and _.")
    return text


def _list(options: argparse.Namespace, server: Server) -> Iterator[str]:
    chosen = options.project or server.account.project
    slugs = [_slug(chosen)] if chosen else [project["slug"] for project in server.get("/projects")]
    wanted = set(options.status.split(",")) if options.status else None
    found = []
    for slug in slugs:
        found += _runs(server, slug, wanted, options.n)
    if options.json:
        yield _json(found)
    elif found:
        yield from words.table(words.RUN_HEAD, [words.run_row(run) for run in found])
    else:
        yield "No runs."


def _runs(server: Server, slug: str, wanted: set[str] | None, most: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before = None
    while len(found) < most:
        page = server.get(
            f"/projects/{slug}/runs", before=before, limit=min(most if wanted is None else 200, 200)
        )
        found += [run for run in page["runs"] if wanted is None or run["status"] in wanted]
        before = page["next_before"]
        if before is None:
            break
    return found[:most]


def _show(options: argparse.Namespace, server: Server) -> Iterator[str]:
    run = server.get(f"/runs/{options.run}")
    if options.json:
        yield _json(run)
    else:
        yield from words.run_facts(run, server.page(run["url"]))


def _watch(options: argparse.Namespace, server: Server) -> Iterator[str]:
    """A server that is away is waited for, and says so once."""
    told, away_since = "", None
    while True:
        try:
            run = server.get(f"/runs/{options.run}")
        except UnreachableError as error:
            now = time.monotonic()
            if away_since is None:
                away_since = now
                print(words.safe_lines(f"arborist run: {error} Waiting."), file=sys.stderr)  # noqa: T201
            if now - away_since > PATIENCE_SECONDS:
                raise
            time.sleep(options.every)
            continue
        away_since = None
        line = _json({key: run[key] for key in _WATCHED}) if options.json else words.progress(run)
        if line != told:
            yield line
        told = line
        if run["status"] in ENDED:
            if run["reason"] and not options.json:
                yield words.safe(run["reason"])
            options.exit_status = 0 if run["status"] == "succeeded" else ENDED_BADLY
            return
        time.sleep(options.every)


_WATCHED = (
    "id", "name", "status", "reason", "step", "steps_total", "phase", "phase_done", "phase_total", "eta_s",
    "latest",
)  # fmt: skip


def _stop(options: argparse.Namespace, server: Server) -> Iterator[str]:
    return _do(options, server, "stop-now" if options.now else "stop")


def _fork(options: argparse.Namespace, server: Server) -> Iterator[str]:
    kept = server.get(f"/runs/{options.run}/checkpoints")
    chosen = next((one for one in kept if options.step in (None, one["step"])), None)
    if chosen is None:
        steps = ", ".join(str(one["step"]) for one in kept) or "none"
        raise UsageError(f"run {options.run} keeps no such checkpoint. Kept: {steps}.")
    name = options.name or f"{server.get(f'/runs/{options.run}')['name'][:100]} fork"
    body = {"name": name, "checkpoint": chosen["id"], "changes": dict(map(_change, options.set))}
    run = _sent_once(
        server, f"/runs/{options.run}/fork", body | {"idempotency_key": secrets.token_urlsafe(16)}
    )
    if options.json:
        yield _json(run)
        return
    yield f"run {run['id']} {words.safe(run['name'])}: {words.safe(run['status'])} from step {chosen['step']}"
    yield f"  {server.page(run['url'])}"


def _clone(options: argparse.Namespace, server: Server) -> Iterator[str]:
    body = {"name": options.name, "changes": dict(map(_change, options.set))}
    run = _sent_once(
        server, f"/runs/{options.run}/clone", body | {"idempotency_key": secrets.token_urlsafe(16)}
    )
    if options.json:
        yield _json(run)
        return
    yield f"run {run['id']} {words.safe(run['name'])}: {words.safe(run['status'])}"
    yield f"  {server.page(run['url'])}"


def _change(text: str) -> tuple[str, Any]:
    """`training.steps=500` as its path and its value: JSON where it is some, else the text."""
    path, given, value = text.partition("=")
    if not given:
        raise UsageError(f"{text[:80]!r} changes nothing. Write --set training.steps=500.")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def _action(verb: str) -> Do:
    return lambda options, server: _do(options, server, verb)


def _do(options: argparse.Namespace, server: Server, verb: str) -> Iterator[str]:
    run = server.post(f"/runs/{options.run}/{verb}")
    if options.json:
        yield _json(run)
        return
    yield words.progress(run)
    if run["reason"]:
        yield words.safe(run["reason"])


# ------------------------------------------------------------------------------------------------ the others


def _queue(options: argparse.Namespace, server: Server) -> Iterator[str]:
    found = server.get("/queue")
    yield from [_json(found)] if options.json else words.queue_lines(found["classes"])


def _workers(options: argparse.Namespace, server: Server) -> Iterator[str]:
    found = server.get("/workers")
    if options.json:
        yield _json(found)
    elif found["workers"]:
        yield from words.table(words.WORKER_HEAD, [words.worker_row(worker) for worker in found["workers"]])
    else:
        yield "No worker was seen."


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main())
