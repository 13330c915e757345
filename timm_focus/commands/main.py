"""`timm-focus`: train networks, see what they look at, and publish them, from the command line."""
import argparse
import logging
import signal
import sys
from typing import Optional, Sequence

from timm_focus.utils.parser import Parser
from timm_focus.utils.processes import end_workers
from timm_focus.utils.secrets import discreet, redact

from . import area, explain, export, models, predict, push, report, rf, train, validate

__all__ = ['main']


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of `timm-focus`."""
    parser = Parser(
        prog='timm-focus', description='Train a network, see what it looks at and what it costs, and publish it.',
        examples=('timm-focus predict photo.jpg --checkpoint output/train/scenes',
                  'timm-focus report output/train/plain output/train/scenes --data DIR'))
    commands = parser.add_subparsers(title='commands', dest='command', required=True, parser_class=Parser)
    for module in (area, explain, export, models, predict, push, report, rf, train, validate):
        module.add_parser(commands)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run a subcommand; a mistake ends it with one line and exit code 2, Ctrl-C with one line and 130."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['train']:
        return train.train(argv[1:])
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    for name in ('matplotlib', 'onnx_ir', 'onnxscript', 'timm'):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with discreet():
            args.run(args)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        sys.exit(0)
    except (ValueError, OSError, ImportError) as e:
        print(f'timm-focus {args.command}: error: {redact(" ".join(str(e).split()))}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # people press it more than once
        print(f'timm-focus {args.command}: ended by Ctrl-C', file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # the code that shells expect
    finally:
        end_workers()


if __name__ == '__main__':
    main()
