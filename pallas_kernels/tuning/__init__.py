"""Block sizes of kernels, measured once and looked up."""
