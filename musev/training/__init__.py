"""Training in plain torch: losses, what is frozen, one step, resumable state. No Ray, no files."""
