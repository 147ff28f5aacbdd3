"""Finding a learning rate or a batch size by trying them out, with everything afterwards as it was before."""

from fulgur.tuner.tuning import Tuner

__all__ = ["Tuner"]
