"""An exported decoder with its cache: the file, and the names in its graph."""

FILE = "decoder_with_cache.onnx"
"""The artifact `onnx_cache`."""

IDS = "input_ids"
SCORES = "logits"
"""Names of the graph's first input and output; the others are the cache, `past_<n>` in and `present_<n>` out."""
