"""Text to token ids and back: all kinds of vocabulary, special ids of families, chat templates. No TensorFlow."""
