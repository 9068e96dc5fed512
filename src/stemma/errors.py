"""Every error says what is wrong, what was given and what to do.

A wrong *outcome* is not an error: that is an `Evidence` with the verdict `INCONCLUSIVE`.
"""


class StemmaError(Exception):
    """Base of all errors that a user can cause; the command line shows its one sentence."""


class UnreadableModelError(StemmaError):
    """A file that should hold weights cannot be read: truncated, corrupt, hostile or of an unsupported kind."""


class OverBudgetError(UnreadableModelError):
    """Reading a checkpoint would cost more than any honest one of its size does; it was not read."""


class PartlyReadError(UnreadableModelError):
    """A test needs bytes of a model of which only a sample was read."""


class RemoteError(StemmaError):
    """A model on a server cannot be read: no answer, a false one, a changed file, a refused or unsafe address."""


class NotAModelError(StemmaError):
    """A path holds nothing that Stemma reads as a checkpoint."""


class UnreadableProbesError(StemmaError):
    """What should hold probes cannot be read: not there, damaged, too large, of mixed sizes or of another kind."""


class UnsafeFileError(UnreadableModelError):
    """Reading the file would run code or leave its folder; it was not read."""


class MissingExtraError(StemmaError):
    """An optional dependency is needed for this input."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package '{package}'. Install it with: pip install 'stemma-ml[{extra}]'")


class RegistryError(StemmaError):
    """The registry refused a change, or does not hold what was asked for."""


class UnusableRegistryError(RegistryError):
    """The registry as a whole cannot be read or written: read-only, full, damaged, locked or of another version."""


class UnknownNameError(StemmaError):
    """A name, digest prefix or path leads to no model."""


class MisuseError(StemmaError):
    """Arguments contradict each other; the command line exits with 2."""


class EngineError(StemmaError):
    """A cluster cannot be reached or used, or its workers cannot do the work: no workers, no files, another version."""


class EndpointError(StemmaError):
    """A service that stands for a model refuses to answer, answers wrongly, or may not be asked any more."""


class StatementError(StemmaError):
    """What was found cannot be written in the format that was asked for."""


class SigningError(StemmaError):
    """A key, a signature or a signed statement cannot be read or used."""


class ExchangeError(StemmaError):
    """What another registry exported cannot be read, was changed, or comes from somebody else than before."""
