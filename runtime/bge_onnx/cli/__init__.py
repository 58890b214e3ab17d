"""The command `bge`: arguments in, calls of the library, results on stdout, reports on stderr.

`start` is the entry point; `command_line` is how commands end, of `bge-export` too.
Nothing but `bge_export.cli` imports from here.
"""
