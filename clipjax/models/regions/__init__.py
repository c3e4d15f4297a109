"""Models that embed regions of an image."""
