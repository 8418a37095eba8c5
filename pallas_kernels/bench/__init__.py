"""What the kernels cost: measured on the device at hand, or read off programs compiled for chips that are not."""
