"""The one attention signature that models call. Backends are added here, next to the reference they must equal."""

from pallas_kernels.attention.reference import attention
from pallas_kernels.attention.spec import Mask

__all__ = ["Mask", "attention"]
