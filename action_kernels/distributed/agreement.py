"""Before a collective: every process has arguments that fit, or every process raises."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .exchange import all_gather

Setting = bool | int | float | torch.dtype

_NAME_WORDS, _MOST_SETTINGS = 4, 16  # of a message: whoever calls what, all send as many numbers

_DTYPES = sorted({x for x in vars(torch).values() if isinstance(x, torch.dtype)}, key=str)


class Given(NamedTuple):
    """What this process was given, once it has been found to fit."""

    counts: Sequence[int]  # may differ between the processes
    settings: Mapping[str, Setting]  # must not; the same names on all of them


def agree(
    call: str,
    what: str,
    names: Sequence[str],
    given: Callable[[], Given],
    group: dist.ProcessGroup | None,
    *values: object,
) -> list[list[int]]:
    """The counts of every process, by rank. A collective call, which reads a few integers on the host.

    Args:
        call: what users have called, 32 letters at most.
        what: the arguments, for messages.
        names: of the settings, 16 at most.
        given: checks the arguments of this process; the number of counts is that of every process, 2 at most.
        group: the processes.
        values: arguments, checked or not; the tensors among them are where the group's collectives run.

    Raises:
        ValueError: another process has called something else, its check has failed, or the settings differ.
        Exception: what this process's own check has raised.
    """
    name_words = _words(call)
    unused = [0] * (_MOST_SETTINGS - len(names))
    problem: Exception | None = None
    ours = Given((), {})
    device = place(group, *values)
    try:
        strays = [x.device for x in values if isinstance(x, Tensor) and x.device.type != "cuda"]
        if strays and _on_gpus_alone(group):
            raise ValueError(f"{what} must be on a GPU for processes that speak by NCCL, got a tensor on {strays[0]}")
        ours = given()
        settings = [_encoded(name, ours.settings[name]) for name in names]
        line = [*name_words, 0, *([*ours.counts, 0, 0][:2]), *settings, *unused]
    except Exception as error:  # raised again when the others know
        problem = error
        line = [*name_words, 1, 0, 0, *(0 for _ in names), *unused]
    message = torch.tensor(line, dtype=torch.int64, device=device)
    table = torch.empty((dist.get_world_size(group), len(message)), dtype=torch.int64, device=device)
    all_gather(table.view(-1), message, group)
    lines: list[list[int]] = table.tolist()
    if problem:
        raise problem
    calls = [_call(line[:_NAME_WORDS]) for line in lines]
    for rank, another in enumerate(calls):
        if another != calls[0]:
            raise ValueError(f"ranks 0 and {rank} must make the same call, got {calls[0]} and {another}")
    lines = [line[_NAME_WORDS : len(line) - len(unused)] for line in lines]
    for rank, (failed, *_) in enumerate(lines):
        if failed:
            raise ValueError(f"rank {rank} was given {what} that do not fit: its own message says why")
    for rank, (_, _, _, *theirs) in enumerate(lines):
        for name, first, other in zip(names, lines[0][3:], theirs, strict=True):
            if other != first:
                like = ours.settings[name]
                raise ValueError(
                    f"ranks 0 and {rank} must be given {what} alike: {name} is {_decoded(first, like)} and "
                    f"{_decoded(other, like)}"
                )
    return [theirs[1:3] for theirs in lines]


def _words(call: str) -> list[int]:
    """A name as numbers of 64 bits, as many for any name."""
    return list(struct.unpack(f"<{_NAME_WORDS}q", call.encode().ljust(8 * _NAME_WORDS, b"\0")))


def _call(words: Sequence[int]) -> str:
    """The name again."""
    return struct.pack(f"<{_NAME_WORDS}q", *words).rstrip(b"\0").decode()


def place(group: dist.ProcessGroup | None, *values: object) -> torch.device:
    """Of the first tensor among arguments, or any that the process group can use."""
    devices = [x.device for x in values if isinstance(x, Tensor)]
    if _on_gpus_alone(group):
        devices = [device for device in devices if device.type == "cuda"]
        return devices[0] if devices else torch.device("cuda", torch.cuda.current_device())
    return devices[0] if devices else torch.device("cpu")


def _on_gpus_alone(group: dist.ProcessGroup | None) -> bool:
    """Whether the group takes no tensor on a CPU; NCCL's own name is not there where PyTorch has chosen it."""
    return "cpu:" not in str(dist.get_backend_config(group))


def _encoded(name: str, value: Setting) -> int:
    if isinstance(value, torch.dtype):
        return _DTYPES.index(value)
    if isinstance(value, float):
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must be an integer of 64 bits, got {value}")
    return int(value)


def _decoded(code: int, like: Setting) -> Setting:
    """The value of another process, of the kind of our own."""
    if isinstance(like, torch.dtype):
        return _DTYPES[code]
    if isinstance(like, float):
        return float(struct.unpack("<d", struct.pack("<q", code))[0])
    return type(like)(code)
