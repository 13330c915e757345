"""A run on disk: checkpoint.py reads its weights, model.py makes its model, names.py its classes, summary.py its
numbers, start.py goes on."""
from .checkpoint import Checkpoint, check_home, find_checkpoint, is_source, parse_checkpoint, read_checkpoint
from .model import (
    Loaded, check_name, check_plain, image_mode, load_heads, load_model, load_run, model_arguments)
from .names import class_names, read_class_names
from .start import start_from
from .summary import read_summary
