"""The decoder compared with GPT-2 of transformers with the same weights."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.decoders import decoder, tokens
from tests.support.exported_models import parameter_count
from tests.support.token_batches import padded, samples
from trainer.model.decoder import Decoder


def gpt2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a GPT-2 under our names."""
    names = {
        "wte": "token_embedding",
        "wpe": "position_embedding",
        "h.": "blocks.",
        "ln_1": "attention_norm",
        "attn.c_attn": "query_key_value",
        "attn.c_proj": "attention_output",
        "ln_2": "feed_forward_norm",
        "mlp.c_fc": "feed_forward.0",
        "mlp.c_proj": "feed_forward.2",
        "ln_f": "norm",
    }
    ours = {}
    for name, value in state.items():
        if not name.startswith("transformer."):
            continue
        new = name.removeprefix("transformer.")
        for theirs, our in names.items():
            new = new.replace(theirs, our)
        # Conv1D stores the transposed weight.
        ours[new] = value.T if ".c_" in name and name.endswith("weight") else value
    return ours


@pytest.mark.slow
class TestGpt2:
    @pytest.fixture
    def theirs(self) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48}
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, **shape)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    @pytest.fixture
    def ours(self, theirs: Any) -> Decoder:
        model = decoder()
        model.load_state_dict(gpt2_names(theirs.state_dict()))
        return model

    @torch.no_grad()
    def test_logits(self, ours: Decoder, theirs: Any) -> None:
        ids = tokens(5, 64)

        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_logits_of_padded_samples(self, ours: Decoder, theirs: Any) -> None:
        inputs = padded(samples(6))
        mask = inputs["attention_mask"].bool()

        torch.testing.assert_close(ours(**inputs)[mask], theirs(**inputs).logits[mask], rtol=0, atol=1e-5)

    def test_gradients(self, ours: Decoder, theirs: Any) -> None:
        ids = tokens(5, 64)
        for logits in (ours(ids), theirs(ids).logits):
            F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        expected = gpt2_names({name: part.grad for name, part in theirs.named_parameters()})

        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_cached_steps(self, ours: Decoder, theirs: Any) -> None:
        ids, past, cache = tokens(2, 12), None, ours.empty_cache(2)
        for start, stop in ((0, 7), (7, 8), (8, 12)):
            logits, cache = ours.step(ids[:, start:stop], cache)
            output = theirs(ids[:, start:stop], past_key_values=past, use_cache=True)
            past = output.past_key_values

            torch.testing.assert_close(logits, output.logits[:, -1], rtol=0, atol=1e-5)

    def test_parameter_counts_are_equal(self, ours: Decoder, theirs: Any) -> None:
        assert parameter_count(ours) == theirs.num_parameters()
