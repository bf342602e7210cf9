"""Running code that a model wrote, where it can do no harm and not touch its verdict; see `pool.Sandbox`."""
