"""Videos: frames with their times, files that browsers play, and objects followed from frame to frame."""
