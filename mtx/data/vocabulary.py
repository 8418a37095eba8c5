"""The vocabulary of a cache. It lies in `mtx.tokens`, since tasks need it too."""

from mtx.tokens.codec import BYTE_OFFSET
from mtx.tokens.vocabulary import Vocabulary

__all__ = ["BYTE_OFFSET", "Vocabulary"]
