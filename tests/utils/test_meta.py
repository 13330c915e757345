"""A model without numbers gives the shapes that the model itself gives."""
import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_focus.utils.meta import ALIKE, NORMS, ShapesAlone, meta_twin, run_on_meta

MODELS = ['resnet10t', 'nf_regnet_b0', 'test_vit', 'test_convnext', 'test_efficientnet', 'mobilenetv3_small_050']


class Comparison(TorchDispatchMode):
    """Compares each operation with torch's own answer."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        expected, found = func(*args, **(kwargs or {})), run_on_meta(func, args, kwargs or {})
        assert [(t.shape, t.dtype) for t in tree_leaves(found) if torch.is_tensor(t)] == [
            (t.shape, t.dtype) for t in tree_leaves(expected) if torch.is_tensor(t)], func
        self.names.add(func._schema.name.removeprefix('aten::').removesuffix('_'))
        return expected


@pytest.mark.slow('dtype1')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_shapes_are_those_that_torch_tells(dtype):
    met = set()
    for name in MODELS:
        model = timm.create_model(name).eval()
        twin = meta_twin(model.to(dtype))
        with torch.no_grad(), Comparison() as comparison:
            x = torch.zeros(2, *model.pretrained_cfg['input_size'], device='meta', dtype=dtype)
            twin(x)
        with torch.no_grad(), ShapesAlone():
            assert twin(x).shape == (2, 1000)
        met |= comparison.names
    assert met >= {*ALIKE, *NORMS}, 'each is met'


@pytest.mark.parametrize('name', MODELS)
def test_a_twin_shares_nothing_with_its_model(name):
    model = timm.create_model(name).train()
    model.set_grad_checkpointing()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    twin = meta_twin(model)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    assert not any(p.requires_grad for p in twin.parameters()) and not twin.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and all(p.requires_grad and not p.is_meta for p in model.parameters())
    assert not getattr(twin, 'grad_checkpointing', False)
