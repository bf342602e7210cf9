"""The two ways a run can go wrong that a user, not a developer, has to hear about."""


class ConfigurationError(ValueError):
    """A setting, file or combination that cannot work: says what, where and how to mend it.

    Raised at construction or during setup, before any weights load. The command line prints the message
    alone and exits with status 2.
    """


class TrainingError(RuntimeError):
    """A run that must not go on (a reward or a loss that is not finite): says what and where the evidence is.

    The command line prints the message alone and exits with status 1.
    """


def shortened(text: str, most: int = 2000) -> str:
    """`text` without its middle, if it is longer than `most` characters."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} [...] {text[-half:]}"
