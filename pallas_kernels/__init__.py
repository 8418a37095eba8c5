"""Attention and adapter kernels: semantics once, one file a backend."""
