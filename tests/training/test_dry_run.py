"""What a training step costs, counted without computing."""
import timm
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm

from timm_focus.training.dry_run import training_multiply_adds


def test_a_model_that_shares_its_statistics_is_counted_as_any_other(tmp_path):
    """Its layers take tensors of a GPU alone where processes train together."""
    model, images = timm.create_model('focus_test_resnet', num_classes=3).train(), torch.zeros(2, 3, 64, 64)
    expected = training_multiply_adds(model, images)
    shared = convert_sync_batchnorm(model)
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        assert training_multiply_adds(shared, images) == expected > 0
    finally:
        dist.destroy_process_group()
    assert all(m.training for m in shared.modules())
