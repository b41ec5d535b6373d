import json
import zlib

import torch
from safetensors.torch import save
from torch import nn

from trainer.prune.sparsity import compressed_bytes, described, sparsity, total


def model() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    with torch.no_grad():
        made[0].weight[0] = 0
        made[1].weight[:, 1] = -0.0
    return made


def test_zeros_are_counted_by_weight() -> None:
    found = sparsity(model(), ["1.weight", "0.weight"])

    assert [(layer.name, layer.shape, layer.zeros, layer.size) for layer in found] == [
        ("0.weight", (4, 3), 3, 12),
        ("1.weight", (5, 4), 5, 20),
    ]
    assert (found[0].share, total(found).share) == (0.25, 8 / 32)
    written = json.loads(json.dumps(described(found)))
    assert written["layers"][1] == {"name": "1.weight", "shape": [5, 4], "zeros": 5, "size": 20, "share": 0.25}
    assert written["total"] == {"name": "total", "shape": [], "zeros": 8, "size": 32, "share": 0.25}


def test_a_file_of_zeros_is_small_when_it_is_compressed() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    plain, compressed = compressed_bytes(layer)
    file = save({name: tensor.contiguous() for name, tensor in layer.state_dict().items()}, {"format": "pt"})
    assert plain == len(file)
    assert 0.98 < compressed / len(zlib.compress(file)) < 1.02

    with torch.no_grad():
        layer.weight[:50] = 0
    halved, smaller = compressed_bytes(layer)
    assert halved == plain
    assert 0.45 < smaller / compressed < 0.55
