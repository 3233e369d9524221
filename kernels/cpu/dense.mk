# CPU kernels of dense ops, and the dispatch.
