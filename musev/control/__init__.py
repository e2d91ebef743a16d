"""Control pictures: what a video model is shown, frame by frame, besides the text."""
