"""The command line: one file a command, each of them arguments in and a call out."""
