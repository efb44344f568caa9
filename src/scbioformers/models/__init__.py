"""Models that come with the package. Your own models are saved and loaded with :class:`scbioformers.BioFormer`."""

from scbioformers.models._blood import blood

__all__ = ["blood"]
