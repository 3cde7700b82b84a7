"""The command line: from ``key=value`` to one checked, typed configuration, without importing torch."""
