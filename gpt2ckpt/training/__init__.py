"""One training process of a run: hardware, state, step, loop, reports."""
