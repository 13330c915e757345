"""The `timm-focus` command, one file for each subcommand."""
