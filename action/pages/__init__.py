"""HTML pages that show runs: everything in one file, which opens from disk without a network."""
