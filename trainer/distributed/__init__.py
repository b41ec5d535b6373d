"""Training on several devices: the processes are started and watched, joined, and may store the weights in shards."""
