"""The run folder: a chain of steps, each done once, each in a folder of its own.

`step.json` in a step's folder names the step before it by its token. A step is skipped where it is done and the token
matches; where the token matches but it is not done, it goes on in its folder; else the folder is stale (a step before
it ran anew) and it starts afresh. So the same command resumes, and removing a folder runs that step and those after it.
"""

from __future__ import annotations

import fcntl
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from experiments.environment import describe
from kd.checkpoint import atomic_write, load_json, save_json
from kd.console import say
from kd.errors import InputError
from kd.processes import processes

CONFIG, MARKER, LOCK = "config.yaml", "step.json", ".lock"


@dataclass(frozen=True)
class Outcome:
    """What a step has to say beside its files: a kind for the report, words, details, seconds where it knows better
    than the clock (work that was resumed), and training curves by name."""

    kind: str
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    curve: list[dict[str, Any]] | None = None


class Run:
    """One run folder under one configuration."""

    def __init__(self, out: Path, resolved: str, command: str) -> None:
        """Open or start a run. Raises InputError where the folder holds another configuration or something else."""
        self.out, self.token = out, ""
        config = out / CONFIG
        if out.exists() and not out.is_dir():
            raise InputError("out", str(out), "is a file, not a folder")
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out), processes().main_process_first():  # the others find what the first one made
            if config.exists():
                _same(settings(out), yaml.safe_load(resolved), out)
            elif any(path.name != LOCK for path in out.iterdir()):
                (out / LOCK).unlink(missing_ok=True)
                raise InputError("out", str(out), "is not empty and holds no run: name a new folder")
            else:
                save_json(out / "environment.json", describe() | {"command": command})
                atomic_write(config, resolved)

    def step(self, name: str, work: Callable[[Path], Outcome], shared: bool = False) -> Path:
        """Do `work(folder)`, on all processes, unless it is done; returns the folder. `name` may hold slashes.

        Other commands on this run folder wait until it is done, or take part in it where it is `shared`.
        """
        folder = self.out / name
        with _alone(self.out) as lock:
            with processes().main_process_first():
                begun = self._begin(name)
            if shared:
                lock.close()
            if begun["done"]:
                say(f"{name}: done before")
            else:
                clock = time.perf_counter()
                outcome = work(folder)
                elapsed = time.perf_counter() - clock
                seconds = elapsed if outcome.seconds is None else outcome.seconds
                ended = begun | vars(outcome) | {"seconds": seconds, "done": True}
                in_main_process(lambda: save_json(folder / MARKER, ended))
        self.token = begun["token"]
        return folder

    def _begin(self, name: str) -> dict[str, Any]:
        """The step's record: of work that is done or under way after this very predecessor, else a new one."""
        folder = self.out / name
        known = load_json(folder / MARKER) if (folder / MARKER).exists() else {}
        if known.get("after") == self.token:
            return known
        if folder.exists():
            shutil.rmtree(folder)
        say(f"{name}: starts")
        begun = {"name": name, "after": self.token, "token": uuid.uuid4().hex, "done": False}
        save_json(folder / MARKER, begun)
        return begun


@contextmanager
def _alone(out: Path) -> Iterator[IO[str]]:
    """Hold the run folder, by the first process for all of a launch; the system frees it when that ends."""
    with (out / LOCK).open("w") as lock:
        if processes().is_main_process:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process is at work in {out}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        processes().wait_for_everyone()
        yield lock


def chain(out: Path) -> list[dict[str, Any]]:
    """The records of the finished steps of a run, in order."""
    records = {record["after"]: record for record in map(load_json, out.rglob(MARKER)) if record["done"]}
    steps, token = [], ""
    while token in records:
        steps.append(records[token])
        token = records[token]["token"]
    return steps


def settings(out: Path) -> dict[str, Any]:
    """The configuration of a run. Raises InputError where the file holds none."""
    try:
        found = yaml.safe_load((out / CONFIG).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("out", str(out / CONFIG), f"is no YAML file: {error}") from error
    if not isinstance(found, dict):
        raise InputError("out", str(out / CONFIG), "holds no configuration")
    return found


def in_main_process(write: Callable[[], Any]) -> None:
    """Let only the first process write, and the others wait for it."""
    state = processes()
    if state.is_main_process:
        write()
    state.wait_for_everyone()


def _same(then: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    before, after = _leaves(then), _leaves(now)
    before.pop("out", None), after.pop("out", None)  # a run folder may be moved
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise InputError(name, after.get(name), f"the run in {out} was made with {before.get(name)!r}")


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
