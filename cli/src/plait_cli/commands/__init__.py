"""The commands, a module per group; each is imported only when it is called or listed."""
