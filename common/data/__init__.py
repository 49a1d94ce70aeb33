"""Where transitions come from: a module a format, one that finds and downloads, one that collects, one that checks."""
