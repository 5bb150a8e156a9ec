"""The one exception for bad input: a file, folder, flag or configuration key that the user can put right."""


class InputError(Exception):
    """Bad input. The message names the file or key, the value, and what to do; entry points print it and exit 2."""
