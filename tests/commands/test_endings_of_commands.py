"""How commands begin: threads that sleep."""
import configparser

from conftest import ROOT


def test_threads_that_wait_sleep_before_torch_is_loaded():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert 'timm-focus = timm_focus_command:main' in config['options.entry_points']['console_scripts']
    for name in ('timm_focus_command.py', 'train_focus.py'):
        lines = (ROOT / name).read_text().splitlines()
        heavy = next(i for i, line in enumerate(lines) if line.startswith(('import torch', 'from timm_focus')))
        assert any("os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')" in line for line in lines[:heavy])
