"""Checks that resumed runs equal an undisturbed run bitwise."""
