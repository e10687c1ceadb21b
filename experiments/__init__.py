"""Runs from the command line: train, evaluate, predict, export, benchmark."""
