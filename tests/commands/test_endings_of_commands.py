"""How commands begin and end: threads that sleep, and Ctrl-C."""
import configparser
import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios

import pytest

from conftest import ENVIRONMENT, ROOT


def test_threads_that_wait_sleep_before_torch_is_loaded():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert 'timm-focus = timm_focus_command:main' in config['options.entry_points']['console_scripts']
    for name in ('timm_focus_command.py', 'train_focus.py'):
        lines = (ROOT / name).read_text().splitlines()
        heavy = next(i for i, line in enumerate(lines) if line.startswith(('import torch', 'from timm_focus')))
        assert any("os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')" in line for line in lines[:heavy])


@pytest.mark.slow
@pytest.mark.long('area')
@pytest.mark.parametrize('name', ['area', 'explain', 'validate'])
def test_ctrl_c_ends_a_command_in_one_line(name, image_folder, finished_run, tmp_path):
    """Sent to the process group, workers and all, as a terminal does, in the middle of its images."""
    for i in range(300):
        for label in ('left', 'right'):
            os.link(image_folder / f'train/{label}/0.jpg', image_folder / f'val/{label}/more-{i}.jpg')
    out, (terminal, its_end) = tmp_path / 'out', pty.openpty()  # bars are drawn on terminals alone
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))  # or they are drawn 0 wide
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_focus.commands.main', name, image_folder, '--checkpoint', finished_run,
         *shlex.split('--img-size 64 --device cpu -j 2 -b 1'), '--output', out], start_new_session=True,
        stdout=subprocess.PIPE, stderr=its_end, env={k: v for k, v in ENVIRONMENT.items() if k != 'TQDM_DISABLE'})
    os.close(its_end)
    said, sent = '', False
    with contextlib.suppress(OSError):  # the terminal's way of ending
        while more := os.read(terminal, 4096):
            said += more.decode()
            if not sent and re.search(r'[1-9]\d*/610', said):
                os.killpg(process.pid, signal.SIGINT)
                sent = True
    assert process.wait(30) == 130, said
    lines = [line for line in said.replace('\r', '\n').splitlines() if line.strip() and '/610' not in line]
    assert sent and lines[-1].endswith(f'timm-focus {name}: ended by Ctrl-C') and 'Traceback' not in said, said
    with pytest.raises(ProcessLookupError):  # none is left in its group
        os.killpg(process.pid, 0)
    left = [path for path in out.rglob('*') if path.name.endswith('.tmp')] if out.exists() else []
    assert not left
    if name == 'explain':
        manifest = json.loads((out / 'explained.json').read_text())
        assert not manifest['complete'] and manifest['images']
        assert all((out / e['files']['map']).is_file() for e in manifest['images'])
    if name == 'area':
        assert (out / 'area.csv').read_text().endswith('\n') and not (out / 'area.json').exists()
    if name == 'validate':
        assert not list(out.rglob('*'))
