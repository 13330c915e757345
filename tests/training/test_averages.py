"""Means of an epoch are exact, whatever type a step computes in."""
import pytest
import torch

from timm_focus.training.loop import Averages


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_means_of_many_steps_are_exact(dtype):
    """In float32 a sum of 5e8 would move by 32 at a time; and float16 holds nothing above 65504."""
    averages = Averages(torch.device('cpu'))
    values = (1e4 * torch.rand(400)).to(dtype)
    for value in values:
        averages.update({'loss': value, 'main_loss': value / 2}, 256)
    totals = averages.totals()
    assert totals['count'] == 400 * 256
    assert totals['loss'] / totals['count'] == pytest.approx(values.double().mean().item(), rel=1e-12)
    again = Averages(torch.device('cpu'), totals)  # as a resumed run goes on
    again.update({'loss': values[0], 'main_loss': values[0]}, 1)
    assert again.totals()['loss'] == pytest.approx(256 * values.double().sum().item() + values[0].item(), rel=1e-12)
