"""The one family of exceptions: catch :class:`BioformersError` to catch them all."""


class BioformersError(Exception):
    """Base of every error that scbioformers raises on purpose."""


class DataError(BioformersError, ValueError):
    """The data given cannot be used as it is; the message names what was found and the next call."""


class MissingKeyError(BioformersError, KeyError):
    """A layer, column or slot that was asked for is not there; the message lists what is."""

    # KeyError prints the repr of its argument, which would show the message in quotes with escaped newlines
    __str__ = Exception.__str__


class ConfigError(BioformersError, ValueError):
    """A parameter lies outside its range or contradicts another."""


class ModelFormatError(BioformersError, ValueError):
    """A stored model is damaged, of another schema, or not a model of scbioformers."""


class MissingDependencyError(BioformersError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""


class BioformersWarning(UserWarning):
    """Something was handled, but the user may want to know."""
