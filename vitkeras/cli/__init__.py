"""The commands: `vitkeras COMMAND` and `python -m vitkeras COMMAND`, one module each.

A command module has a docstring, `REQUIRED` (names of required flags), `ARGUMENTS` (what follows
the flags, or None), `define_flags(flags)` and `main(flags, arguments)`, which returns the result as
a dict. The runner defines --config if it is required. A command imports TensorFlow only inside
`main`, so that `--help` and wrong flags answer at once.
"""
