"""From a command line to a typed configuration, and from an exception to one line and an exit status."""

from __future__ import annotations

import argparse
import os
import pydoc
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from inspect import signature
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

import psutil
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from kd.console import say
from kd.errors import DivergedError, InputError
from kd.processes import on_cpu

Config = TypeVar("Config")
Main = Callable[[Config, str], None]
RECIPES = Path(__file__).parent / "recipes"
WHOLE = {"data.augment"}  # optional, so either null or all of it
SECTIONS = {
    "out",
    "seed",
    "data",
    "teacher",
    "student",
    "space",
    "search",
    "loss",
    "objective",
    "fit",
    "stages",
    "report",
}


class Recipe(ActionConfigFile):
    """A YAML file, of which a command takes the sections that it has: one recipe serves every step."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        path = Path(values)
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError("config", values, f"is no YAML file: {error}") from error
        if not isinstance(content, dict):
            raise InputError("config", values, "must hold sections, such as data: or fit:")
        others = SECTIONS - {name.partition(".")[0] for name in vars(parser.get_defaults())}
        own = {name: section for name, section in content.items() if name not in others}
        self.apply_config(parser, cfg, self.dest, yaml.safe_dump(own))


def parser(command: str, config_type: type[Any]) -> ArgumentParser:
    """A parser for every field of a configuration dataclass; its defaults are those of recipes/digits.yaml."""
    made = ArgumentParser(
        prog=f"python -m experiments.{command}",
        description=(sys.modules[config_type.__module__].__doc__ or "").strip(),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        exit_on_error=False,
    )
    made.add_argument("--config", action=Recipe, help="a YAML recipe; other arguments override it")
    made.add_class_arguments(config_type, as_group=False)
    recipe = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    known = {field.name for field in fields(config_type)} - {"out"}
    made.set_defaults(_dotted({name: value for name, value in recipe.items() if name in known}))
    return made


def _dotted(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names; classes by import path and lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        nested = isinstance(value, dict) and "class_path" not in value and prefix + name not in WHOLE
        found |= _dotted(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def run(command: str, config_type: type[Config], main: Main[Config], argv: Sequence[str] | None = None) -> int:
    """Parse and call `main(config, resolved YAML)`.

    Returns the exit status: 0, 1 (training diverged), 2 (bad input) or 130 (Ctrl-C), each but 0 with a line on stderr.
    """
    _several(command)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    try:
        made = parser(command, config_type)
        parsed = made.parse_args(_recipe_first(sys.argv[1:] if argv is None else argv))
        _no_null(parsed.as_dict())
        resolved = made.dump(Namespace({k: v for k, v in vars(parsed).items() if k != "config"}), skip_validation=True)
        values = vars(made.instantiate(parsed))
        values.pop("config", None)
        main(config_type(**values), resolved)
    except argparse.ArgumentError as error:
        return _refuse(str(error))
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename or 'file'}: {error.strerror or error}: cannot be read or written")
    except DivergedError as error:
        _refuse(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here")
        return 130
    return 0


def _no_null(given: Any) -> None:
    """Raise InputError for null where a class that is named by its path takes none: the parser lets it pass there."""
    if isinstance(given, dict) and "class_path" in given:
        kind = pydoc.locate(given["class_path"])
        known = signature(kind).parameters if callable(kind) else {}
        for name, value in (given.get("init_args") or {}).items():
            if value is None and name in known and "None" not in str(known[name].annotation):
                raise InputError(f"{given['class_path'].rpartition('.')[2].lower()}.{name}", "null", "leave it out")
    if isinstance(given, (dict, list, tuple)):
        for each in given.values() if isinstance(given, dict) else given:
            _no_null(each)


def _recipe_first(argv: Sequence[str]) -> list[str]:
    """Arguments override the recipe wherever they stand: the parser goes from left to right."""
    rest, recipe = list(argv), []
    for number, word in reversed(list(enumerate(argv))):
        if word == "--config" or word.startswith("--config="):
            size = 2 if word == "--config" else 1
            recipe = rest[number : number + size] + recipe
            del rest[number : number + size]
    return recipe + rest


def _several(name: str) -> None:
    """Start the processes that `accelerate launch --cpu --num_processes N` was asked for.

    accelerate (1.15) starts one process on the CPU whatever N is, unless MPI is there; it only tells an address to meet
    at. So the same command is handed on to torchrun, with the N that the launcher was given.
    """
    environment = os.environ
    if "MASTER_ADDR" not in environment or "WORLD_SIZE" in environment or not on_cpu():
        return
    words = psutil.Process().parent().cmdline()  # the launcher
    if "--num_processes" in words:
        given = {"--nproc_per_node": "--num_processes", "--max_restarts": "--max_restarts"}
        handed = [(ours, words[words.index(its) + 1]) for ours, its in given.items() if its in words]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", *chain.from_iterable(handed)]
        # torch (2.14) keeps one store for all restarts: processes would wait for the addresses of those that died
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        os.execv(sys.executable, [*torchrun, "-m", f"experiments.{name}", *sys.argv[1:]])


def command(name: str) -> str:
    """The command line that is running, as a user would type it."""
    return shlex.join(["python", "-m", f"experiments.{name}", *sys.argv[1:]])


def writable(field: str, place: str | None) -> Path | None:
    """The path of a file that can be written, which was tried in the nearest folder that there is; nothing stays there.

    None for none. Raises InputError where it cannot.
    """
    if place is None:
        return None
    path = Path(place).absolute()
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        with NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):  # as atomic_write will
            usable = path.is_file() or not path.exists()  # a folder or a device is not to be replaced
    except OSError as error:
        raise InputError(field, place, f"cannot be written: {error.strerror}") from error
    if not usable:
        raise InputError(field, place, "is no file")
    return path


def _refuse(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
