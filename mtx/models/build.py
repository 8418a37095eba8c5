"""The model that a config names."""

from flax import nnx
from ml_collections import ConfigDict

from mtx.models.decoder import Decoder
from mtx.models.encdec import EncoderDecoder

Model = EncoderDecoder | Decoder


def build(config: ConfigDict, *, rngs: nnx.Rngs) -> Model:
  """`config.architecture`: "encdec", "causal" or "prefix"; sizes as in `mtx.models.sizes`, plus `vocab_size`."""
  return (EncoderDecoder if config.architecture == "encdec" else Decoder)(config, rngs=rngs)
