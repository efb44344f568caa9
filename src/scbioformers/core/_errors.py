"""Exceptions of scbioformers. Catch :class:`BioformersError` to catch all of them."""


class BioformersError(Exception):
    """Base class of all errors that scbioformers raises itself."""


class DataError(BioformersError, ValueError):
    """The given data cannot be used. The message says what was found and what to do next."""


class MissingKeyError(BioformersError, KeyError):
    """A requested layer, column or slot does not exist. The message lists the existing ones."""

    # KeyError prints the repr of its argument: the message would be in quotes, with escaped newlines
    __str__ = Exception.__str__


class ConfigError(BioformersError, ValueError):
    """A parameter is out of range or contradicts another parameter."""


class ReadError(DataError):
    """Cells could not be read from their file: it is damaged, was changed, or has vanished."""


class ModelFormatError(BioformersError, ValueError):
    """A stored model is damaged, has another schema, or is not a model of scbioformers."""


class StorageError(BioformersError, OSError):
    """A model or a result could not be written, for instance to a full disk. What was there before is still whole."""


class OutOfMemoryError(BioformersError, MemoryError):
    """A computation needs more memory than there is. The message suggests a smaller batch."""


class ProcessLostError(BioformersError, RuntimeError):
    """One of several processes that train together has ended or does not answer, so the others cannot go on."""


class TrainingDiverged(BioformersError, ArithmeticError):
    """The loss became NaN or infinite before the first validation, so there are no weights to keep."""


class MissingDependencyError(BioformersError, ImportError):
    """An optional dependency is not installed. The message contains the pip command."""


class BioformersWarning(UserWarning):
    """A problem was handled automatically, but the user should know about it."""
