"""The `timm-focus` command, a file a subcommand."""
