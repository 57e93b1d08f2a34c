"""The command line, figures, tables and widgets."""
