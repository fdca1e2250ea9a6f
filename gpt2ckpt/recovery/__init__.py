"""The recovery drill: kill a short training, resume it, and say what a crash would cost."""
