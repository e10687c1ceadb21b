"""One file per run; common.py explains every field."""
