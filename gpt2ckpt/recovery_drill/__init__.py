"""The recovery drill: kills a training run, resumes it, and reports whether it is exact."""
