"""The pre-norm encoder of torch with the weights of a model's blocks."""

from torch import Tensor, nn

_NAMES = {
    "attention_norm": "norm1",
    "query_key_value.weight": "self_attn.in_proj_weight",
    "query_key_value.bias": "self_attn.in_proj_bias",
    "attention_output": "self_attn.out_proj",
    "feed_forward_norm": "norm2",
    "feed_forward.0": "linear1",
    "feed_forward.2": "linear2",
}
"""Names of the modules of our block, and of torch's layer."""


def torchs_encoder(model: nn.Module, *, dim: int, heads: int, hidden: int, depth: int) -> nn.TransformerEncoder:
    """Return torch's encoder with the blocks and the final norm of `model`, in the model's precision."""
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(dim, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True),
        num_layers=depth,
        norm=nn.LayerNorm(dim),
        enable_nested_tensor=False,
    )
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("blocks."):
            for ours, theirs in _NAMES.items():
                name = name.replace(f".{ours}", f".{theirs}")
            state[name.replace("blocks.", "layers.")] = value
        elif name.startswith("norm."):
            state[name] = value
    encoder.load_state_dict(state)
    return encoder.to(next(model.parameters()).dtype)
