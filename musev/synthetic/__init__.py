"""Drawn people: pictures made from a seed, for demos and tests that must need no files."""
