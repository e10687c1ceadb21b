"""`python -m vitkeras COMMAND`, the same as `vitkeras COMMAND`."""

from vitkeras.cli.main import console_main

console_main()
