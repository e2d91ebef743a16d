"""Denoising arithmetic: schedules, solvers, noise, guidance, windows. Knows no network by name."""
