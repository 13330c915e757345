"""Names of settings that readers of a run's settings skip, by kind. A new option of such a kind is added here."""

__all__ = ['IDENTITY', 'ORDER', 'PLACES', 'PRIVATE']

# identity and start of a run: other runs do not take these over, and comparisons of methods ignore them
IDENTITY = ('experiment', 'resume', 'no_resume_opt', 'start_epoch', 'overwrite', 'wandb_resume_id', 'push_to_hub')
# places of the run's data and files
PLACES = ('data', 'data_dir', 'output', 'config')
# settings that decide which images come in which step: a run resumed within an epoch needs them unchanged
ORDER = (
    'batch_size', 'grad_accum_steps', 'seed', 'epoch_repeats', 'aug_repeats', 'train_list', 'images_per_class',
    'subset_seed', 'dataset', 'train_split', 'class_map', 'places_version', 'places_size', 'train_img_sizes',
    'train_batch_sizes', 'train_size_probs', 'train_size_schedule',
    'train_size_schedule_spread', 'train_size_random_mix', 'train_batches_per_epoch')
# settings that are never published, as regular expressions: places on a machine, accounts, and the push's target, so
# that a copy of the run does not push there, too
PRIVATE = (
    *PLACES, 'experiment', 'resume', 'initial_checkpoint', 'pretrained_path', 'train_list', 'class_map', 'class_stats',
    'log_wandb', 'wandb_.*', 'push_to_hub', 'hub_.*', 'label_names', 'local_rank', 'rank', 'world_size', 'distributed',
    'device.*', '(.*_)?token', '.*(secret|password|api_?key|credential).*')
