"""The model card of an export: README.md, with the metadata that the Hub reads."""
import math
import re
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Set, Union

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from timm_focus.analysis import multiply_adds
from timm_focus.receptive import receptive_field
from timm_focus.method import FocusNet

__all__ = ['write_card']

TEMPLATE = Path(__file__).with_name('card.md')
METRICS = {'top1': ('accuracy', 'Top-1 accuracy, %'), 'top5': ('accuracy', 'Top-5 accuracy, %'),
           'loss': ('loss', 'Cross-entropy')}
SHUFFLENET = 'shufflenetv2_'
RECIPE = (
    'epochs', 'batch_size', 'opt', 'lr', 'momentum', 'weight_decay', 'sched', 'warmup_epochs', 'smoothing', 'scheme',
    'aa', 'mixup', 'cutmix', 'reprob', 'model_ema', 'amp', 'images_per_class', 'has', 'seed')
FOCUS_RECIPE = ('focus_alpha', 'focus_beta', 'focus_side_weight', 'focus_consistency')


def write_card(
        path: Union[str, Path],
        plain: nn.Module,
        focus: Optional[FocusNet],
        *,
        repo_id: str,
        license: str,
        license_name: str,
        license_link: str,
        dataset: str,
        dataset_terms: str,
        data_config: Dict[str, Any],
        metrics: Dict[str, float],
        settings: Dict[str, Any],
        coverage: Optional[Dict[str, Any]],
        base_model: str,
        label_names: Sequence[str],
        tag: str,
        files: Set[str],
) -> None:
    """Write README.md; the arguments are those of `save_for_hub`, `files` the names of what is beside the card."""
    architecture = plain.pretrained_cfg['architecture']
    hub_dataset = dataset if re.fullmatch(r'[\w.-]+/[\w.-]+', dataset) else None
    data = ModelCardData(
        license=license.strip().lower(),
        license_name=_word(license_name) or None,
        license_link=license_link.strip() or None,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'scene-classification', 'timm', *(['timm_focus'] if focus is not None else [])],
        datasets=[hub_dataset] if hub_dataset else None,
        base_model=base_model or None,
        model_name=repo_id.split('/')[-1],
        metrics=['accuracy'] if 'top1' in metrics else None,
        eval_results=[
            EvalResult(
                task_type='image-classification', task_name='Image Classification', dataset_type=hub_dataset or
                _word(dataset), dataset_name=_line(dataset), dataset_split='validation', metric_type=METRICS[k][0],
                metric_name=METRICS[k][1], metric_value=round(v, 4))
            for k, v in metrics.items() if k in METRICS] or None,
    )
    names = (*RECIPE, *(FOCUS_RECIPE if focus is not None else ()))
    recipe = {k: settings[k] for k in names if settings.get(k) not in (None, '', False)}
    height, width = data_config['input_size'][1:]
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text('utf-8'),
        repo_id=repo_id,
        name=repo_id.split('/')[-1],
        architecture=architecture,
        num_classes=plain.num_classes,
        parameters=f'{sum(p.numel() for p in plain.parameters()):,}',
        multiply_adds=f'{multiply_adds(plain, data_config["input_size"]):,}',
        receptive_field=_receptive_field(plain),
        channels=data_config['input_size'][0],
        size=f'{height} x {width}',
        data_config=data_config,
        evaluation=metrics and {METRICS[k][1]: f'{v:.2f}' if k != 'loss' else f'{v:.4f}' for k, v in metrics.items()
                                if k in METRICS},
        license=_cell(license_name) or license.strip().lower(),
        license_link=_line(license_link),
        dataset=_cell(dataset),
        dataset_terms=_cell(dataset_terms),
        base_model=base_model,
        label_names=label_names,
        tag=tag,
        focus=focus.focus_args if focus is not None else None,
        recipe={k: _cell(_value(v)) for k, v in recipe.items()},
        coverage=coverage,
        files=files,
        torchvision=architecture.replace('v2', '_v2') if architecture.startswith(SHUFFLENET) else None,
    )
    Path(path).write_text(card.content, 'utf-8')


def _line(text: str) -> str:
    """A text of a flag as one line."""
    return ' '.join(text.split())


def _cell(text: str) -> str:
    """The same, for a table."""
    return _line(text).replace('|', '\\|')


def _word(text: str) -> str:
    return '-'.join(re.findall(r'[a-z0-9.]+', text.lower()))


def _value(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else 'yes' if value is True else str(value)


def _receptive_field(plain: nn.Module) -> str:
    """The receptive field of the last feature in words."""
    try:
        field = receptive_field(plain)
    except ValueError:
        return 'no sliding window'
    sizes = field.size if isinstance(field.size, tuple) else (field.size,)
    if any(math.isinf(s) for s in sizes):
        return f'the whole image (through {field.through})'
    return ' x '.join(str(int(s)) for s in sizes) + ' pixels'
