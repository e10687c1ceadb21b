"""Files: atomic writes, locks, the run directory, progress, figures and HTML pages."""
