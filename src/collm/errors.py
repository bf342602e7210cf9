"""The two errors that are reported to the user of the command line without a traceback."""


class ConfigurationError(ValueError):
    """A setting, a file or a combination of them that cannot work; the message names it and the remedy.

    Raised at construction or during setup, before any weights load. The command line prints only the message
    and exits with status 2.
    """


class TrainingError(RuntimeError):
    """A failure that ends a run, such as a reward or loss that is not finite; the message says where to look.

    The command line prints only the message and exits with status 1.
    """


def shortened(text: str, most: int = 2000) -> str:
    """`text` with its middle cut out if it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} [...] {text[-half:]}"


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
