"""Exceptions of aif_jax. Each message says what was given, what was expected, and how to fix it."""


class AifError(Exception):
    """Base of every error that aif_jax raises on purpose.

    >>> from aif_jax import ModelConfig
    >>> try:
    ...     ModelConfig(width=0)
    ... except AifError as error:
    ...     print(f"{type(error).__name__}: {error}")
    ConfigError: width: got 0, expected a whole number of at least 1.
    """

    def __str__(self) -> str:
        # A value that is quoted may hold half of a surrogate pair, which cannot be printed. Other bases
        # would say more than the message.
        return Exception.__str__(self).encode("utf-8", "backslashreplace").decode()


class ConfigError(AifError, ValueError):
    """A configuration value is out of its range, or two of them contradict each other."""


class SchemaError(AifError, ValueError):
    """Data does not fit the schema: a feature is absent, or has the wrong dtype or shape."""


class DataError(AifError):
    """A data source is missing, incomplete or not in a known format."""


class MissingExtraError(AifError, ImportError):
    """A package of an extra is not installed; the message says which extra to install."""


class TrainingError(AifError):
    """Training cannot continue, for example because a loss or a gradient is not finite."""


class BundleError(AifError):
    """A bundle cannot be loaded: a file is missing, broken, or made by an incompatible version."""


class WriteError(AifError, OSError):
    """A file or directory cannot be written: the disk refuses, or something of another kind has its name."""


class VersionMismatchError(AifError):
    """A bundle, an item index and a behaviour table do not belong to one generation."""


class ItemIndexError(AifError):
    """An item index or behaviour table is broken or was used against its rules."""


class ArchiveError(ItemIndexError):
    """The disk refused a write of an archive. What the archive confirmed before is safe."""


class LayoutError(AifError, ValueError):
    """Columns do not match the row layout of an embedding cache."""


class RequestError(AifError, ValueError):
    """A request is malformed: wrong dtype or shape, no candidates, an impossible ``k``."""


class UnknownUserError(RequestError, KeyError):
    """The user source does not know this user, and the engine is configured to refuse such users."""


class UserSourceError(AifError):
    """The user source raised, which is the cause of this error, or returned a record that cannot be read."""


class UnknownItemError(RequestError):
    """A candidate has no item row, and the engine is configured to refuse such candidates."""


class RetrievalError(AifError):
    """The ``retrieve`` callable raised, or returned something that is not candidates."""


class OverloadedError(AifError):
    """A bounded queue is full; the request was refused before any work was done for it."""


class DeadlineExceededError(AifError, TimeoutError):
    """The deadline passed before the work was started or finished."""


class PublishError(AifError):
    """A new generation was refused; the running one keeps serving."""


class SchedulerError(AifError, RuntimeError):
    """The scheduler was shut down, forked, or would have had to wait for itself."""


class ProcessError(SchedulerError, TypeError):
    """An object was used after a fork or pickled, or gevent has replaced the threads that it needs."""
