"""Run directories: claimed once, locked while alive, found again to resume."""
