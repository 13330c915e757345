"""`timm-focus train`: the training script, train_focus.py, as a subcommand."""
import sys
from typing import Any, Sequence

__all__ = ['add_parser', 'train']


def add_parser(commands: Any) -> None:
    commands.add_parser('train', help='train a model: train_focus.py, with the same flags', add_help=False,
                        examples=('timm-focus train DIR --model focus_resnet18 --experiment scenes',))


def train(arguments: Sequence[str]) -> None:
    """Run train_focus.py, which reads the flags itself."""
    import train_focus

    argv, prog = sys.argv, train_focus.parser.prog
    sys.argv = ['timm-focus train', *arguments]
    train_focus.parser.prog = sys.argv[0]
    try:
        train_focus.cli()
    finally:
        sys.argv, train_focus.parser.prog = argv, prog
