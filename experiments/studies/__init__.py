"""Studies that produce the figures in the documentation."""
