# CPU kernels of the cache ops.
