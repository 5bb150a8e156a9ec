"""The one exception for bad input: a file, folder, flag or configuration key that the user can put right."""


class InputError(Exception):
    """Bad input. The message names the file or key, the value, and what to do; entry points print it and exit 2."""


def said(error: Exception) -> str:
    """What another program's error says, on one line and not at any length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
