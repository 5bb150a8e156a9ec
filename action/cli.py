"""Command lines: arguments -> objects -> run, and errors in one sentence with exit code 2."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from action.commands import COMMANDS, example, program
from action.config import RunConfig, TrainConfig, fill_in
from action.errors import InputError
from action.files import write_aside
from action.help_pages import HelpPage, MainPage, ShowAll
from action.ranks import OtherRankFailed, speaks
from action.suggestions import did_you_mean

LEAVE_AFTER = 1.0
"""Seconds that a process outlives the failure of another one: when one ends, torchrun ends those that still speak."""


class Parser(ArgumentParser):
    """Argument parser whose errors are one sentence, with the nearest name that exists, and no page of usage before it.

    Flags are written out: an abbreviation could mean another setting in a later version.
    """

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": HelpPage} | keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        raise InputError(parser.explain(" ".join(str(message).split())))

    @property
    def flags(self) -> list[str]:
        """The long flags, without their dashes."""
        return [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]

    def explain(self, message: str) -> str:
        """The library's message in our words, with a suggestion where it is about a name that does not exist."""
        if found := re.fullmatch("unrecognized arguments: (.*)", message):
            unknown = [word.partition("=")[0] for word in found[1].split() if word.startswith("--")]
            return "; ".join(map(self._no_flag, unknown)) or f"'{found[1]}' belongs to no option: --help lists them"
        if found := re.search(
            r"(?:Group '(.*?)' does not accept option|Option) '(.*?)'(?: is not accepted)?$", message
        ):
            return self.no_setting(".".join(part for part in found.groups() if part))
        if found := re.fullmatch(r'Parser key "(.*?)": Expected a (.*)\. Got value: (.*)', message):
            name, wanted, value = found.groups()
            if choices := re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", wanted):
                return _no_choice(name, value, choices[1])
            shown = "null" if value == "None" else f"'{value}'"
            return f"{name} is {shown}: it must be {_TYPES.get(wanted, wanted)}"
        if found := re.fullmatch(r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", message):
            return _no_choice(*found.groups())
        if found := _OWN.fullmatch(message):
            return _no_choice(found[1], found[3], found[2])
        if found := re.fullmatch("the following arguments are required: (.*)", message):
            return self._missing([name.rpartition(".")[2] for name in found[1].split(", ")])
        return re.sub(r'Parser key "(.*?)": ', r"\1: ", message)

    def _missing(self, names: list[str]) -> str:
        """The sentence for arguments without which a command cannot go on, with what may have taken them."""
        given = " and ".join(f"--{name}" if name in self.flags else name.upper() for name in names)
        several = [flag for flag, action in self._option_string_actions.items() if action.nargs in ("+", "*")]
        if not several or all(name in self.flags for name in names):
            return f"give {given}: --help shows how"
        return f"give {given}, in front of {' and '.join(several)}, after which all names belong to the flag"

    def no_setting(self, name: str) -> str:
        """The sentence for a key of a YAML file that does not exist."""
        return f"there is no setting {name}{did_you_mean(name, self.flags, otherwise=self._where_listed())}"

    def _no_flag(self, flag: str) -> str:
        return f"there is no {flag}{did_you_mean(flag[2:], self.flags, '--{}', self._where_listed())}"

    def _where_listed(self) -> str:
        return f": {'--help-all' if 'help-all' in self.flags else '--help'} lists what there is"


_OWN = re.compile(r'Parser key "(.*?)": Does not validate .*typing\.Literal\[(.*?)\], .*OwnClass.* Given value: (.*)')
"""The library's message where a name of the project's or a class is asked for."""
_TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'tuple'>": "a list, such as [1,2]",
    "<class 'dict'>": "names with their values, such as {a: 1}",
}


def _no_choice(name: str, value: str, choices: str) -> str:
    known = choices.replace("'", "").split(", ")
    return f"{name} is '{value}', not one of {', '.join(map(repr, known))}{did_you_mean(value, known)}"


def command_parser(name: str, **keywords: Any) -> Parser:
    """The parser of a command, with what it does and an example in its ``--help``."""
    return Parser(
        prog=program(name),
        description=COMMANDS[name].does,
        epilog=f"example:\n  {example(name)}",
        **keywords,
    )


def add_processing(parser: Parser) -> None:
    """Add the flags that say how labels are made of a network's probabilities."""
    parser.add_argument(
        "--mirror", action="store_true", help="average over four flips of every slice: takes four times as long"
    )
    parser.add_argument(
        "--largest_component",
        type=str,
        nargs="*",
        default=None,
        metavar="CLASS",
        help="keep only the largest connected piece (3-D, corners connect) of these classes, or of each without a name",
    )


class ConfigFile(ActionConfigFile):
    """The flag of a YAML file with settings; an empty file changes nothing."""

    def __call__(self, parser: Any, cfg: Any, values: str, option_string: str | None = None) -> None:
        path = Path(values)
        try:
            text = path.read_text(encoding="utf-8-sig") if path.is_file() else values
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason}): save it in that encoding") from None
        if not any(line.partition("#")[0].strip() for line in text.splitlines()):
            return
        try:
            super().__call__(parser, cfg, values, option_string)
            if unknown := list(_unknown(yaml.safe_load(text), parser.flags)):
                raise InputError("; ".join(map(parser.no_setting, unknown)))
        except InputError as error:
            raise InputError(f"{path}: {error}" if path.is_file() else str(error)) from None


def _unknown(settings: Any, known: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Keys of a YAML file that are no settings, those of groups as ``group.name``."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            key = f"{prefix}{name}"
            if key not in known:
                yield key
            elif any(flag.startswith(f"{key}.") for flag in known):  # a group, and no setting whose value has names
                yield from _unknown(value, known, f"{key}.")


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run an entry point: bad input prints one sentence and exits with 2."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()  # a full disk or a closed pipe must be noticed here, not at exit
    except InputError as error:
        _fail(str(error))
    except OtherRankFailed:
        time.sleep(LEAVE_AFTER)
        sys.exit(2)
    except BrokenPipeError:  # the program that read our output has ended
        _discard_output()
        sys.exit(1)
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            if error.errno and not error.filename:
                error.filename = "standard output"
            _discard_output()
        _fail(_system_sentence(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        _fail(_memory_sentence(error))
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # PyTorch's message where the CPU's memory is exhausted
            raise
        _fail(_memory_sentence(error))
    except KeyboardInterrupt:
        if speaks():
            print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _discard_output() -> None:
    """Keep Python from flushing at exit what could not be printed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _memory_sentence(error: Exception) -> str:
    reason = " ".join(str(error).split()) or "no reason given"
    return f"out of memory ({reason}): use smaller batches, a smaller input.size, or another device"


def _system_sentence(error: OSError) -> str:
    """An error of the operating system as a sentence with a remedy."""
    where = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.ENOSPC: "make room on the disk, then start again (a training with --resume)",
        errno.EDQUOT: "make room in the quota, then start again (a training with --resume)",
        errno.EROFS: "choose a folder that can be written",
        errno.EACCES: "allow this user to read and write there, or choose another folder",
        errno.EPERM: "allow this user to read and write there, or choose another folder",
        errno.ENOTDIR: "a file stands where a folder is needed: choose another one",
        errno.EEXIST: "a file stands where a folder is needed: choose another one",
        errno.EISDIR: "a folder stands where a file is needed: choose another one",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }
    remedy = remedies.get(error.errno or 0, "check that the path can be read and written")
    return f"{where}{error.strerror or error}; {remedy}"


def config_parser(command: str = "train") -> Parser:
    """The parser of a ``TrainConfig``: YAML files (``--config``) and flags, the later overriding the earlier."""
    parser = command_parser(command, formatter_class=MainPage, usage="%(prog)s [--config FILE] [OPTION ...]")
    parser.add_argument("--help-all", action=ShowAll)
    parser.add_argument(
        "--config",
        action=ConfigFile,
        metavar="FILE",
        help="YAML file with any of these settings; may be repeated, later files and flags override earlier ones",
    )
    parser.add_class_arguments(TrainConfig)
    return parser


def to_config(parser: Parser, arguments: Namespace) -> TrainConfig:
    """The configuration object of parsed arguments.

    Raises:
        InputError: a value outside its range, or that does not go with another one.
    """
    for group in dataclasses.fields(TrainConfig):
        if group.default_factory is not dataclasses.MISSING and arguments[group.name] is None:
            raise InputError(f"{group.name} is null: give it settings, or leave it out for its defaults")
    objects = parser.instantiate(arguments)
    return TrainConfig(**{name: objects[name] for name in TrainConfig.__dataclass_fields__})


def parse_config(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that flags of ``action.train`` ask for.

    Raises:
        InputError: a flag, key or value that does not belong there.
    """
    parser = config_parser()
    return to_config(parser, parser.parse_args(list(arguments)))


def load_config(path: Path) -> RunConfig:
    """A run's saved configuration.

    Raises:
        InputError: missing file, a key or value that does not belong there, or one that a run's configuration has and
            this one lacks.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder of a run that action.train has written")
    try:
        config = parse_config(["--config", str(path)])
        data, output, spacing, size = config.data, config.output, config.input.spacing, config.input.size
        if data is None or output is None or spacing is None or size is None:
            raise InputError(
                "data, output, input.spacing or input.size is missing, which every run's configuration has"
            )
        return fill_in(config, data, output, spacing, size)
    except InputError as error:
        where = "" if str(error).startswith(f"{path}: ") else f"{path}: "
        raise InputError(f"{where}{error}; correct it, or use the version of action that wrote it") from None


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; ``--config`` reads it back."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples as lists, which YAML knows
    with write_aside(path) as aside:
        aside.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def choose_device(name: str) -> torch.device:
    """Device of a name; "auto" takes a GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # each process of torchrun's has a GPU of its own
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device '{name}' is unknown: use auto, cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported: use auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device '{name}': PyTorch sees {torch.cuda.device_count()} GPUs; use auto or cpu")
    return device
