"""Site selection, injection and adapter methods, one file each."""
