"""Is a resumed run bitwise the run that never stopped? Every kind of checkpoint, every moment."""
