"""Studies that anyone can run again: a folder each, with its README, script and results."""
