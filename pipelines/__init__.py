"""Ray Data graphs over the model library: rows in, committed videos out."""
