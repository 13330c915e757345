"""What train_focus.py is made of."""
from timm_focus.utils.errors import SettingsError, as_settings_error

from .arguments import build_parser
from .batches import check_sizes, check_smallest_batch, check_teacher_sizes
from .continuation import changed_settings, check_order, resume
from .data import check_readable, create_datasets, create_loaders, fit_images, keep_lists, set_complex, set_epoch
from .device import set_up_device
from .dry_run import TwoSteps, describe_training, differing
from .folder import RunFolder, decide
from .interrupt import Interrupted, Interruption
from .journal import Journal, conclude, describe, describe_cost, draw_sheet
from .loop import train_one_epoch, validate
from .model import build_model, default_lr, note_data
from .reproducible import ReproducibleLoader, seed_all
from .saver import FocusCheckpointSaver, Kept, Progress, read_kept
from .settings import Settings, parse_args
from .starts import AUTO, Start, found
from .task import FocusTask, create_task
