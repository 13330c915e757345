"""A run on disk: checkpoint.py reads weights, model.py makes the model, names.py reads class names, summary.py reads
summary.csv, and start.py loads weights to train from."""
from .checkpoint import Checkpoint, check_home, find_checkpoint, is_source, parse_checkpoint, read_checkpoint
from .model import (
    Loaded, check_name, check_plain, image_mode, load_heads, load_model, load_run, model_arguments)
from .names import class_names, read_class_names
from .start import start_from
from .summary import read_summary
