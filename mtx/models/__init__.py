"""One transformer stack: encoder-decoder and decoder."""
