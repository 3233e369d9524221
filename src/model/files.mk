# GGUF, description, shards, weights.
