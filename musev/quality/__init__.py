"""Judges of video that know nothing of the model judged: numbers with range and meaning."""
