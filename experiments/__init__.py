"""Studies that can be repeated, each with README, script and results."""
