"""What is so, and why, as every surface tells it: the command line, and whatever else there is."""
