"""timm's own tests, those of its sdist, on what stands in for timm's: $TIMM_FOCUS_TIMM_TESTS names it, not copied."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def timm_tests(tmp_path):
    """A copy of the sdist's tests, where the installed timm is found and `import train` gives train_focus."""
    path = os.environ.get('TIMM_FOCUS_TIMM_TESTS')
    if not path:
        pytest.skip("timm's own tests are not here: name the unpacked sdist in TIMM_FOCUS_TIMM_TESTS")
    shutil.copytree(Path(path) / 'tests', tmp_path / 'tests')
    (tmp_path / 'train.py').write_text(
        "import sys\nimport train_focus\nsys.modules['train'] = train_focus\n"
        "train_focus.parser.set_defaults(model='resnet50')  # as in timm's\n")

    def run(*arguments):
        process = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '-p', 'timm_focus', '-p', 'no:cacheprovider', *arguments],
            cwd=tmp_path, capture_output=True, text=True)
        print(process.stdout[-3000:])
        assert process.returncode == 0, process.stdout[-5000:] + process.stderr
        return process.stdout.splitlines()[-1]
    return run


def test_models(timm_tests):
    """Those by model name, on ShuffleNetV2; what downloads weights is left out."""
    summary = timm_tests('tests/test_models.py', '-k', 'shufflenetv2 and not focus and not pretrained')
    assert int(summary.split(' passed')[0].split()[-1]) >= 32


def test_train_resume(timm_tests):
    """But for one that has a run overwrite another, which takes --overwrite here."""
    summary = timm_tests('tests/test_train_resume.py', '-k', 'not fresh_run_resets_existing_summary')
    assert int(summary.split(' passed')[0].split()[-1]) >= 11
