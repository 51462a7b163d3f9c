"""The whole deployment as child processes of one foreground process."""
