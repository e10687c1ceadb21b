"""Runs of the paper: recipes, studies, benchmarks and tables. Not installed."""
