"""What an error on a Unix socket means, and its causes: one table, for the terminal and the docs."""
