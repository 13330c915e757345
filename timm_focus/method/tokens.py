"""Erases parts of an image for a transformer by leaving their tokens out, which also saves their computation.

Tokens are left out where timm's patch drop leaves out random ones: after the position embedding. So a model must have
patch drop.
"""
import contextlib
from typing import Any, Iterator, Sequence, Tuple

import torch
from timm.models import Hiera, NaFlexVit, VisionTransformer
from timm.models.eva import Eva
from torch import Tensor, nn

__all__ = ['check_tokens', 'forward_tokens', 'keep_tokens', 'token_grid']

FAMILIES = (VisionTransformer, Eva, NaFlexVit, Hiera)


def check_tokens(backbone: nn.Module) -> None:
    """Check that tokens of a model can be left out.

    Raises:
        ValueError: It belongs to no family of models for which timm has patch drop.
    """
    if not isinstance(backbone, FAMILIES):
        raise ValueError(
            f'{type(backbone).__name__} has no tokens that can be left out, as transformers with patch drop have '
            f'({", ".join(family.__name__ for family in FAMILIES)}): leave out focus_drop_tokens.')


def token_grid(backbone: Any, size: Sequence[int]) -> Tuple[int, int]:
    """Return rows and columns of tokens of an image of size (H, W); for Hiera, which groups tokens, those of units."""
    if isinstance(backbone, Hiera):
        rows, columns = backbone.mask_spatial_shape
        return rows, columns
    patch = backbone.embeds.patch_size if isinstance(backbone, NaFlexVit) else backbone.patch_embed.patch_size
    return size[0] // patch[0], size[1] // patch[1]


def keep_tokens(score: Tensor, share: float) -> Tensor:
    """Return which tokens stay: those with the lowest scores, equally many of each image.

    Args:
        score: Scores of tokens, `[n, h, w]`; those with the highest are left out.
        share: Share of the tokens to leave out; at least one stays.

    Returns:
        Indices of the tokens that stay, ascending, `[n, k]`.
    """
    score = score.flatten(1)
    k = max(1, score.shape[1] - round(share * score.shape[1]))
    return score.argsort(1)[:, :k].sort(1).values


def forward_tokens(backbone: Any, x: Tensor, kept: Tensor) -> Tensor:
    """Run `forward_features` on images `[n, C, H, W]` with only the tokens `kept` `[n, k]`."""
    if isinstance(backbone, Hiera):
        units = backbone.mask_spatial_shape[0] * backbone.mask_spatial_shape[1]
        mask = torch.zeros(len(x), units, dtype=torch.bool, device=x.device).scatter(1, kept, True)
        return backbone.forward_features(x, mask=mask)
    with _dropping(backbone, kept):
        return backbone.forward_features(x)


class _Kept(nn.Module):
    """Replaces timm's patch drop: keeps the chosen tokens, and before them those that are no patches."""

    def __init__(self, kept: Tensor, n_prefix: int, tells: bool):
        super().__init__()
        self.kept, self.n_prefix, self.tells = kept, n_prefix, tells

    def forward(self, x: Tensor) -> Any:
        patches = x[:, self.n_prefix:]
        patches = patches.gather(1, self.kept[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :self.n_prefix], patches], 1)
        return (x, self.kept) if self.tells else x


@contextlib.contextmanager
def _dropping(backbone: Any, kept: Tensor) -> Iterator[None]:
    """While this context is active, a model leaves out all tokens but these."""
    own = backbone.patch_drop  # an Identity, or None in models whose patch drop tells what stays
    vars(backbone)['patch_drop'] = _Kept(kept, backbone.num_prefix_tokens, tells=own is None)
    try:
        yield
    finally:
        if own is None:
            vars(backbone)['patch_drop'] = None
        else:  # it is among the modules, which come after what an instance has of its own
            del vars(backbone)['patch_drop']
