"""The training itself: hardware, state, step, loop."""
