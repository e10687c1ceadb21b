"""Weight formats, one module each.

A format has `NAME`, `OPTIONAL` (patterns of arrays that a file may hold and a model does not need),
`matches(shapes)`, `read_spec(arrays, config, hints)` and `weight_map(spec)`. Formats that can be
written have `check_writable(config)` and `writable_spec(config)` too.
"""
