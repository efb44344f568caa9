"""Tools and trials for contributors."""
