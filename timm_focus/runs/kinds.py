"""Kinds of settings, by name: what readers of a run's settings pass over. A new option of such a kind is added here."""

__all__ = ['IDENTITY', 'ORDER', 'PLACES', 'PRIVATE']

# which run it is and how it began: another run begins without these, and they tell no method from another
IDENTITY = ('experiment', 'resume', 'no_resume_opt', 'start_epoch', 'overwrite', 'wandb_resume_id', 'push_to_hub')
# where its data and files are
PLACES = ('data', 'data_dir', 'output', 'config')
# which images come in which step of an epoch: a run that goes on in the middle of one needs them as they were
ORDER = (
    'batch_size', 'grad_accum_steps', 'seed', 'epoch_repeats', 'aug_repeats', 'train_list', 'images_per_class',
    'subset_seed', 'train_img_sizes', 'train_batch_sizes', 'train_size_probs', 'train_size_schedule',
    'train_size_schedule_spread', 'train_size_random_mix', 'train_batches_per_epoch')
# what is never published, as regular expressions: places on a machine, accounts, and where the run was to be pushed,
# as a copy must not push there, too
PRIVATE = (
    *PLACES, 'experiment', 'resume', 'initial_checkpoint', 'pretrained_path', 'train_list', 'class_map', 'class_stats',
    'log_wandb', 'wandb_.*', 'push_to_hub', 'hub_.*', 'label_names', 'local_rank', 'rank', 'world_size', 'distributed',
    'device.*', '(.*_)?token', '.*(secret|password|api_?key|credential).*')
