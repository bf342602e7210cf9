"""A sandbox that runs and tests code written by models; see `pool.Sandbox`."""
