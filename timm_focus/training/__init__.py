"""What train_focus.py is made of."""
from .arguments import build_parser, parse_args
from .checkpoint import FocusCheckpointSaver, Progress, resume
from .loop import train_one_epoch, validate
from .reproducible import ReproducibleLoader, seed_all
from .task import FocusTask, create_task
