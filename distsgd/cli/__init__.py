"""The command line: arguments, help, exit status and terminal output; one file per subcommand."""
