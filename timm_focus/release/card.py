"""The model card of an export: README.md, with the metadata that the Hub reads."""
import logging
import math
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Set, Union

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from timm_focus.analysis import multiply_adds
from timm_focus.method import FocusNet
from timm_focus.receptive import receptive_field
from timm_focus.utils.text import markdown, one_line, word
from timm_focus.utils.warned import warned

from .publication import Publication, is_repo_id

__all__ = ['write_card']

_logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name('card.md')
# the Hub's metric, its name, and the factor of the metadata, in which accuracies are fractions
METRICS = {'top1': ('accuracy', 'Top-1 accuracy', 0.01), 'top5': ('accuracy', 'Top-5 accuracy', 0.01),
           'loss': ('loss', 'Cross-entropy', 1)}
SHUFFLENET = 'shufflenetv2_'
RECIPE = (
    'epochs', 'batch_size', 'opt', 'lr', 'momentum', 'weight_decay', 'sched', 'warmup_epochs', 'smoothing', 'scheme',
    'aa', 'mixup', 'cutmix', 'reprob', 'model_ema', 'amp', 'images_per_class', 'has', 'seed')
ALWAYS = ('seed', 'weight_decay', 'momentum')  # shown even if 0; for others, 0 means not used
FOCUS_RECIPE = ('focus_alpha', 'focus_beta', 'focus_side_weight', 'focus_consistency')


def write_card(
        path: Union[str, Path],
        plain: Any,
        focus: Optional[FocusNet],
        publication: Publication,
        *,
        data_config: Dict[str, Any],
        metrics: Dict[str, float],
        settings: Dict[str, Any],
        coverage: Optional[Dict[str, Any]],
        base_model: str,
        label_names: Sequence[str],
        files: Set[str],
) -> None:
    """Write the card. Values from flags, data and checkpoints are escaped, so they show as plain text.

    Args:
        path: File to write.
        plain: The plain timm model.
        focus: The model with its heads; None for a plain run.
        publication: Licence, data set and names, with the tag of the weights.
        files: Names of the files beside the card.

    The other arguments are those of `write_export`.
    """
    architecture = plain.pretrained_cfg['architecture']
    name, dataset = publication.repo_id.split('/')[-1], publication.dataset
    hub_dataset = dataset if is_repo_id(dataset) else None
    base_model = base_model if is_repo_id(base_model) else ''
    license = publication.license.strip().lower()
    measured = {METRICS[k]: v for k, v in metrics.items() if k in METRICS}
    torchvision = architecture.replace('v2', '_v2') if architecture.startswith(SHUFFLENET) else None
    data = ModelCardData(
        license=license,
        license_name=word(publication.license_name) or None,
        license_link=publication.license_link.strip() or None,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'scene-classification', 'timm', *(['transformers'] if not torchvision else []),
              *(['timm_focus'] if focus is not None else [])],
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=base_model or None,
        model_name=name,
        metrics=['accuracy'] if any(metric == 'accuracy' for metric, _, _ in measured) else None,
        eval_results=[
            EvalResult(
                task_type='image-classification', task_name='Image Classification',
                dataset_type=hub_dataset or word(dataset) or 'data', dataset_name=one_line(dataset),
                dataset_split='validation', metric_type=metric, metric_name=shown, metric_value=round(v * scale, 6))
            for (metric, shown, scale), v in measured.items()] or None,
    )
    names = (*RECIPE, *(FOCUS_RECIPE if focus is not None else ()))
    recipe = {k: settings[k] for k in names if settings.get(k) not in (None, '', False)
              or k in (*ALWAYS, *FOCUS_RECIPE) and settings.get(k) == 0}
    height, width = data_config['input_size'][1:]
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text('utf-8'),
        repo_id=publication.repo_id,
        name=name,
        architecture=architecture,
        num_classes=plain.num_classes,
        parameters=f'{sum(p.numel() for p in plain.parameters()):,}',
        multiply_adds=_multiply_adds(plain, data_config['input_size']),
        receptive_field=_receptive_field(plain),
        channels=data_config['input_size'][0],
        size=f'{height} x {width}',
        interpolation=markdown(data_config['interpolation']),
        crop_mode=markdown(data_config['crop_mode']),
        crop_percent=f'{100 * data_config["crop_pct"]:g}',
        mean=list(data_config['mean']),
        std=list(data_config['std']),
        evaluation={shown: f'{v:.2f} %' if metric == 'accuracy' else f'{v:.4f}'
                    for (metric, shown, _), v in measured.items()},
        license=markdown(publication.license_name) or license,
        license_link=publication.license_link.strip(),
        dataset=markdown(dataset),
        dataset_terms=markdown(publication.dataset_terms),
        base_model=base_model,
        label_names=label_names,
        tag=publication.tag,
        focus=focus.focus_args if focus is not None else None,
        recipe={k: markdown(_value(v)) for k, v in recipe.items()},
        coverage=coverage,
        files=files,
        torchvision=torchvision,
    )
    Path(path).write_text(card.content, 'utf-8')


def _value(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else 'yes' if value is True else str(value)


def _multiply_adds(plain: nn.Module, input_size: Sequence[int]) -> str:
    with warned('The multiply-adds cannot be counted', _logger):
        return f'{multiply_adds(plain, input_size):,}'
    return 'not counted'


def _receptive_field(plain: nn.Module) -> str:
    """Describe the receptive field of the last feature in words."""
    try:
        field = receptive_field(plain)
    except ValueError:
        return 'no sliding window'
    sizes = field.size if isinstance(field.size, tuple) else (field.size,)
    if any(math.isinf(s) for s in sizes):
        return f'the whole image (through {field.through})'
    return ' x '.join(str(int(s)) for s in sizes) + ' pixels'
