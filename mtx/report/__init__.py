"""Console, event files, tables, figures, one HTML page a run."""
