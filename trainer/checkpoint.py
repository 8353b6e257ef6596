"""All state of a run out to a folder and back in, whole or not at all.

    step-25/
      model/               a model folder like any other: config, tokenizer, safetensors weights
      optimiser.safetensors   AdamW's tensors by parameter name
      batch.msgpack        the next step's trees, where sampling overlaps training (`overlap`)
      state.json           counters; randomness needs no state, it has names (`seeding`)
      config.json          the run's complete config
      manifest.json        size and SHA-256 of every file above; written last

A folder without a manifest that matches does not exist as far as Arborist is concerned. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.checkpoint_folder import (
    FOLDER,
    best_of,
    delete_checkpoint,
    list_checkpoints,
    step_of,
    unfinished_name,
)
from trainer.config import RunConfig, stored_config
from trainer.guards import is_full
from trainer.optim import Optimiser
from trainer.policy import Policy, damaged
from trainer.sharding import split_like, whole

FORMAT_VERSION = 1
VALUE_HEAD = "value_head.safetensors"
ADAPTER = "adapter.safetensors"

_HEADROOM = 1.2
STATE_BYTES = 1023


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which file and why."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not whole: an earlier one may be."""


class DiskFullError(CheckpointError):
    """There is no room for a checkpoint. Those that were there before still are."""


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The counters a run goes on from. `is_evaluation_due`: a stop came before this step's evaluation.
    `data_sha256`: of the training problems; `model_sha256`: of the files of the model that the run started
    from. `microbatch_tokens`: what memory had room for, 0: as the config says. `environment`: what the
    numbers were computed with.
    """

    step: int = 0
    unique_tokens: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    cpu_seconds: float = 0.0
    is_evaluation_due: bool = True
    data_sha256: str = ""
    model_sha256: str = ""
    microbatch_tokens: int = 0
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """`path` is relative to the run's folder."""

    step: int
    path: str
    bytes: int
    weights_sha256: str


def save_checkpoint(
    run_dir: Path,
    config: RunConfig,
    state: TrainerState,
    policy: Policy,
    optimiser: Optimiser,
    *,
    keep_last: int,
    keep_best: bool = False,
    accuracy: float | None = None,
    more: Mapping[str, bytes] | None = None,
) -> SavedCheckpoint:
    """Write `checkpoints/step-N` and delete all but the last `keep_last` up to it, and with `keep_best` the
    one with the best accuracy. Raises CheckpointError, DiskFullError among them; then no checkpoint is lost
    and nothing is left behind, but what the policy would delete may be gone already.

    accuracy: of an evaluation at this very step, None without one. more: further files, by name. Of several
    ranks the first one writes; a checkpoint does not know how many there were: any number can go on from it.

    Everything is written under a temporary name and synced to disk before the folder takes its name.
    """
    folder = run_dir / FOLDER
    target = folder / f"step-{state.step}"
    scratch = unfinished_name(target)
    weights = policy.weights_sha256()
    contents = _Contents.of(policy, optimiser)

    def write() -> int:
        """Bytes of all files; of a rank that writes nothing 0."""
        if not policy.ranks.is_first:
            return 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(
                folder,
                _bytes_needed(policy) + sum(map(len, (more or {}).values())),
                lambda: _delete_old(run_dir, state.step, keep_last - 1, keep_best),
            )
            _write(scratch, config, state, policy, contents)
            for name, content in (more or {}).items():
                (scratch / name).write_bytes(content)
            size = _write_manifest(scratch, state, config, weights, accuracy)
            _take_name(scratch, target, weights, accuracy)
            _sync(folder)
            _delete_old(run_dir, state.step, keep_last, keep_best)
        except DiskFullError:
            raise
        except Exception as error:  # what writes for us raises errors of its own, not only OSError
            shutil.rmtree(scratch, ignore_errors=True)
            if is_full(error):
                raise DiskFullError(
                    f"there was no room left while it was written under {folder} ({error})"
                ) from error
            if not isinstance(error, OSError | SafetensorError):
                raise
            raise CheckpointError(
                f"The checkpoint of step {state.step} could not be written: "
                f"{getattr(error, 'strerror', None) or error}."
            ) from error
        return size

    # A disk that is full pauses the run, which all ranks have to do together.
    size = policy.ranks.together(write, (DiskFullError, CheckpointError))
    return SavedCheckpoint(state.step, f"{FOLDER}/{target.name}", size, weights)


def _delete_old(run_dir: Path, step: int, keep: int, keep_best: bool) -> None:
    """All but the last `keep` up to `step` (never the last one), and the best."""
    best = best_checkpoint(run_dir) if keep_best else None
    # A run that went on from an earlier step leaves later ones alone: they are none of its own.
    own = [path for path in list_checkpoints(run_dir) if step_of(path) <= step]
    for old in own[: -max(keep, 1)]:
        if old != best:
            delete_checkpoint(old)


def _make_room(folder: Path, needed: int, delete_old: Callable[[], None]) -> None:
    """Raise DiskFullError unless a checkpoint fits, which the keep policy may have to see to first."""
    if shutil.disk_usage(folder).free < needed:
        delete_old()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(f"it needs {needed:,} bytes and {free:,} are free under {folder}")


def _bytes_needed(policy: Policy) -> int:
    """Of the weights, of two moments for each that trains, and of the rest, with head-room."""
    trained = {id(own): own for own in policy.named_parameters().values()}
    everything = {id(own): own for own in (*policy.model.parameters(), *trained.values())}
    size = sum(own.numel() * own.element_size() for own in (*everything.values(), *2 * (*trained.values(),)))
    return int(size * _HEADROOM) + 2**20


def best_checkpoint(run_dir: Path) -> Path | None:
    """The finished checkpoint with the best accuracy, the earliest of equals; None if none was evaluated."""
    return best_of(list_checkpoints(run_dir))


def read_checkpoint(path: Path) -> tuple[TrainerState, RunConfig]:
    """Verify every file's hash, then the counters and the config. Raises DamagedCheckpointError naming the
    file, and CheckpointError for one of another format.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is no checkpoint: it has no manifest.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path / 'manifest.json'} cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise DamagedCheckpointError(f"The checkpoint {path} is damaged: manifest.json is none.")
    if manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is a checkpoint of another format; this Arborist reads format {FORMAT_VERSION}."
        )
    try:
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (LookupError, TypeError, AttributeError):
        raise DamagedCheckpointError(
            f"The checkpoint {path} is damaged: manifest.json lists no files."
        ) from None
    if not {"state.json", "config.json"} <= files.keys():
        raise DamagedCheckpointError(
            f"The checkpoint {path} is damaged: manifest.json does not list all files."
        )
    for name, expected in files.items():
        file = path / name
        try:
            is_same = file.stat().st_size == expected[0] and _file_sha256(file) == expected[1]
        except FileNotFoundError:
            raise DamagedCheckpointError(f"The checkpoint {path} is damaged: {name} is missing.") from None
        except OSError as error:  # a disk that fails says so only when it is read
            raise DamagedCheckpointError(
                f"The checkpoint {path} is damaged: {name} cannot be read ({error.strerror})."
            ) from error
        if not is_same:
            raise DamagedCheckpointError(
                f"The checkpoint {path} is damaged: {name} does not match its SHA-256."
            )
    try:
        counters = json.loads((path / "state.json").read_bytes())
        counters.pop("base_sha256", None)  # until 0.2; of weights, not of files
        state = TrainerState(**counters)
        config = stored_config(json.loads((path / "config.json").read_bytes()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
    return state, config


_ALONE = {"processes": "1", "engine processes": "0"}


def environment(device: torch.device | str, processes: int = 1, engines: int = 0) -> dict[str, str]:
    """What decides the last digits of a number, beside the run's own config and state."""
    # Sums over several processes are rounded in another order, and so are batches of another size. One engine
    # for each process has the batches that the process itself would have.
    several = {"processes": str(processes)} if processes > 1 else {}
    if engines > processes:
        several["engine processes"] = str(engines)
    where = torch.device(device)
    is_gpu = where.type == "cuda"
    return {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "numpy": version("numpy"),
        "device": torch.cuda.get_device_name(where) if is_gpu else where.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    } | several


def why_not_exact(saved: dict[str, str], now: dict[str, str]) -> str:
    """Why a resumed run need not equal the unbroken one bit for bit; "" if it will. A checkpoint that knows
    nothing of its environment is from before it was kept; one that knows of no processes had one, and
    its own engine.
    """
    if saved:
        saved, now = _ALONE | saved, _ALONE | now
    if now["device"] != "cpu":
        return "a GPU adds numbers in no fixed order"
    changed = [name for name in now if saved.get(name, now[name]) != now[name]]
    return ", ".join(f"{name} was {saved[name]} and is {now[name]}" for name in changed)


def place_of(checkpoint: Path, run_dir: Path) -> str:
    """What events call it: `attempt-1/checkpoints/step-2` if an earlier attempt beside this one saved it,
    else `step-2`.
    """
    attempt = checkpoint.parent.parent
    is_beside = attempt.parent == run_dir.parent and attempt != run_dir
    return f"{attempt.name}/{FOLDER}/{checkpoint.name}" if is_beside else checkpoint.name


def model_folder(path: Path) -> Path:
    """The policy of a checkpoint, as a model folder."""
    return path / "model"


def checked_model(path: Path) -> Path:
    """`model_folder`, its files verified; the optimiser's, which are the most, are not read. Raises
    CheckpointError.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        files = {name: entry for name, entry in manifest["files"].items() if name.startswith("model/")}
        is_whole = bool(files) and all(
            (path / name).is_file() and _file_sha256(path / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The checkpoint {path.name} is not there any more, or cannot be read."
        ) from error
    if not is_whole:
        raise CheckpointError(f"The checkpoint {path.name} is damaged: its model does not match its SHA-256.")
    return model_folder(path)


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    if isinstance(error, SafetensorError):
        return CheckpointError(f"{file} {damaged(error)}.")
    return CheckpointError(f"{file} cannot be read: {error}.")


def load_adapter(path: Path, policy: Policy) -> None:
    """Put an adapter's weights back over the base model. Raises CheckpointError when they are missing or
    differ."""
    try:
        saved = load_file(path / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path / ADAPTER, error) from error
    own = policy.named_parameters()
    if saved.keys() != own.keys():
        raise CheckpointError(f"{path / ADAPTER} holds another adapter than the run's.")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def load_value_head(path: Path, policy: Policy) -> None:
    """Put the value head's weights back. Raises CheckpointError when they are missing or of another size."""
    if policy.value_head is None:
        raise CheckpointError("The policy has no value head to load.")
    try:
        policy.value_head.load_state_dict(load_file(path / VALUE_HEAD))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unreadable(path / VALUE_HEAD, error) from error


def load_optimiser(path: Path, policy: Policy, optimiser: Optimiser) -> None:
    """Put AdamW's state back, by parameter name. Raises CheckpointError when the names or shapes differ."""
    try:
        tensors = load_file(path / "optimiser.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unreadable(path / "optimiser.safetensors", error) from error
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        by_name.setdefault(name, {})[part] = tensor
    parameters = policy.named_parameters()
    if unknown := by_name.keys() - parameters.keys():
        raise CheckpointError(
            f"{path} has optimiser state for {sorted(unknown)[0]}, which the model does not have."
        )
    for name, parts in by_name.items():
        parameter = parameters[name]
        for part, tensor in parts.items():
            if tensor.dim() and tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"{path}: {part} of {name} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}."
                )
        optimiser.adamw.state[parameter] = {
            # AdamW counts steps on the CPU whatever the device of the weights.
            part: tensor if part == "step" else split_like(tensor, parameter)
            for part, tensor in parts.items()
        }


# ---------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is split over ranks, whole: weights of the model, None where it has them itself, AdamW's tensors,
    and the value head's."""

    weights: dict[str, Tensor] | None
    optimiser: dict[str, Tensor]
    value_head: dict[str, Tensor]
    adapter: dict[str, Tensor]

    @classmethod
    def of(cls, policy: Policy, optimiser: Optimiser) -> _Contents:
        """Collective."""

        def kept(value: Any) -> Tensor:  # AdamW's count of steps may be a number
            return whole(torch.as_tensor(value).detach()).cpu().contiguous()

        moments = {
            f"{name}/{part}": kept(value)
            for name, parameter in policy.named_parameters().items()
            for part, value in optimiser.adamw.state.get(parameter, {}).items()
        }
        head = {} if policy.value_head is None else policy.value_head.state_dict()
        adapter = {} if policy.adapter is None else policy.named_parameters()
        return cls(
            _gathered(policy) if policy.is_sharded else None,
            moments,
            {name: kept(value) for name, value in head.items()},
            {name: kept(value) for name, value in adapter.items()},
        )


def _gathered(policy: Policy) -> dict[str, Tensor]:
    """A copy of the weights that are split over ranks, what is tied still tied. Collective."""
    with policy.merged():
        weights = policy.plain_weights()
        copies = {id(own): own.to("cpu", copy=True) for own in weights.values()}
        return {name: copies[id(own)] for name, own in weights.items()}


def _write(
    scratch: Path, config: RunConfig, state: TrainerState, policy: Policy, contents: _Contents
) -> None:
    if contents.weights is not None:
        policy.model.save_pretrained(model_folder(scratch), state_dict=contents.weights)
    else:
        with policy.merged() as model:
            model.save_pretrained(model_folder(scratch), state_dict=policy.plain_weights())
    if contents.adapter:
        save_file(contents.adapter, scratch / ADAPTER)
    policy.tokenizer.save_pretrained(model_folder(scratch))
    save_file(contents.optimiser, scratch / "optimiser.safetensors")
    if contents.value_head:
        save_file(contents.value_head, scratch / VALUE_HEAD)
    # Padded, so that the size of a checkpoint does not hang on how many digits the CPU time has.
    (scratch / "state.json").write_text(json.dumps(asdict(state)).ljust(STATE_BYTES) + "\n", encoding="utf-8")
    (scratch / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _take_name(scratch: Path, target: Path, weights: str, accuracy: float | None) -> None:
    """Rename into place. After a resume the same step may be there already, usually bit for bit; then that
    one stays, unless only the new one knows its accuracy. Another one is parked for the moment between two
    renames; a crash there is mended by `remove_unfinished`, and a run that looks before takes the checkpoint
    that it went on from last time.
    """
    if target.exists():
        try:
            known = json.loads((target / "manifest.json").read_bytes())
            is_same = known["weights_sha256"] == weights and accuracy in (None, known["accuracy"])
        except (OSError, ValueError, LookupError, TypeError):
            is_same = False  # half a folder, from elsewhere
        if is_same:
            shutil.rmtree(scratch)
            return
        parked = target.with_name(f"{target.name}.old-{secrets.token_hex(4)}")
        target.rename(parked)
        try:
            scratch.rename(target)
        except OSError:
            parked.rename(target)
            raise
        shutil.rmtree(parked)
    else:
        scratch.rename(target)


def _write_manifest(
    scratch: Path, state: TrainerState, config: RunConfig, weights: str, accuracy: float | None
) -> int:
    """Sync every file, then write and sync the manifest. Returns the bytes of all."""
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        _sync(file)
        files[file.relative_to(scratch).as_posix()] = {
            "bytes": file.stat().st_size,
            "sha256": _file_sha256(file),
        }
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "config_sha256": config.sha256(),
        "weights_sha256": weights,
        "accuracy": accuracy,
        "files": files,
    }
    path = scratch / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for place in (path, model_folder(scratch), scratch):
        _sync(place)
    size: int = sum(entry["bytes"] for entry in files.values())
    return size + path.stat().st_size


def _file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
