"""`timm-focus export`: the plain model of a run as a file for timm or for other runtimes."""
import argparse
import os
from typing import Any

from timm_focus.runs import check_home, check_plain, load_model

__all__ = ['add_parser']

FILES = {'safetensors': 'model.safetensors', 'onnx': 'model.onnx'}
KINDS = {'safetensors': 'timm model', 'onnx': 'ONNX file'}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'export', help='write the model of a run for timm, or as ONNX',
        description='Write the plain model of a run as safetensors, with the configuration that timm needs to make it, '
                    'or as ONNX for any batch size, with the preparation of images in its metadata.',
        examples=('timm-focus export output/train/scenes --format safetensors',
                  'timm-focus export hf-hub:user/name --format onnx --output scenes-onnx'))
    parser.add_argument('source', metavar='RUN', help='folder of a run, a checkpoint of it or of timm, an export, '
                        'hf-hub:user/name or local-dir:FOLDER')
    parser.add_argument('--format', required=True, choices=tuple(FILES), help='format of the file')
    parser.add_argument('--model', metavar='NAME', help='timm name of the model, if the weights do not have it')
    parser.add_argument('--output', metavar='DIR', help='where to write (default: a folder with the name of the '
                        'format in the folder of the run)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the file, or nothing."""
    from timm_focus.release import save_onnx, save_plain, written_whole

    check_home(args.source, args.output)
    loaded = load_model(args.model, args.source)
    check_plain(loaded)
    folder = args.output or os.path.join(os.path.dirname(loaded.checkpoint['path']), args.format)
    with written_whole(folder, KINDS[args.format]) as draft:
        if args.format == 'safetensors':
            plain: Any = save_plain(
                loaded.model, draft, data_config=loaded.data_config, label_names=loaded.label_names)
        else:
            save_onnx(
                loaded.model, draft / FILES['onnx'], data_config=loaded.data_config, label_names=loaded.label_names)
    print(f'Exported to {os.path.join(folder, FILES[args.format])}')
    if args.format == 'safetensors':
        needs = 'import timm_focus; ' if plain.pretrained_cfg['architecture'].startswith('shufflenetv2_') else ''
        print(f'Load it with timm: {needs}timm.create_model({f"local-dir:{folder}"!r}, pretrained=True)')
