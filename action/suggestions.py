"""What somebody meant by a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """The known names that ``word`` may stand for, best first; names may have groups, as in ``optimizer.lr``.

    A right name without its group, or in the wrong one, finds every group that has it. Otherwise the group is taken for
    what it resembles, and the name is compared with those of that group alone: ``optimizer.beta`` resembles
    ``optimizer.power`` by its group only.
    """
    names = list(known)
    group, _, last = word.rpartition(".")
    if elsewhere := [name for name in names if "." in name and name.rpartition(".")[2] == last]:
        same_group = _closest(group, [name.rpartition(".")[0] for name in elsewhere]) if group else []
        return [f"{same_group[0]}.{last}"] if same_group else elsewhere
    groups = _closest(group, [name.rpartition(".")[0] for name in names])
    if not groups:
        return []
    prefix = f"{groups[0]}." if groups[0] else ""
    members = [name.removeprefix(prefix) for name in names if name.rpartition(".")[0] == groups[0]]
    return [f"{prefix}{member}" for member in _closest(last, members)]


def did_you_mean(word: str, known: Iterable[str], form: str = "{}", otherwise: str = "") -> str:
    """``: did you mean a, b or c?``, each name in the given form; ``otherwise`` where no name comes near."""
    *others, last = [form.format(name) for name in nearest(word, known)] or [""]
    if not last:
        return otherwise
    return f": did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _closest(word: str, names: Iterable[str]) -> list[str]:
    unique = list(dict.fromkeys(names))
    return [word] if word in unique else get_close_matches(word, unique, n=1)
