"""`timm-focus`, whose threads sleep while they wait, as those of train_focus.py do.

What says so is read when torch is loaded, and the package loads it: so this is a file of its own.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from timm_focus.commands.main import main

__all__ = ['main']

if __name__ == '__main__':
    main()
