"""The whole deployment on one machine: its processes, children of one foreground process."""
