"""MuseV's networks and denoising; runs in one process and knows nothing of Ray."""

__version__ = "0.1.0"
