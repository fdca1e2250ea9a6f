"""The recovery drill: what it runs, measures and reports."""
