"""The attentive probe: a learned query looks at all tokens of a frozen encoder, and a linear layer names what
it saw. Several are trained side by side, one a learning rate and weight decay, on the same features.

With one block it is that of V-JEPA, with four that of V-JEPA 2: blocks of self-attention over the tokens come
first, the last one is the query's cross-attention, which has no projection of its own before the MLP.
Source: V-JEPA, arXiv:2404.08471; V-JEPA 2, arXiv:2506.09985; form and settings as in the repositories
facebookresearch/jepa and facebookresearch/vjepa2, compared in docs/probe.md.

Shapes: B clips, N tokens a clip (of all segments), D width, H heads, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.attention import Packing
from pretrain.model.vit import Block

MLP_RATIO, INIT_STD, EPS = 4.0, 0.02, 1e-6
LEARNING_RATES = (3e-3, 1e-3, 3e-4)
WEIGHT_DECAYS = (0.01, 0.4)
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 20, 300, 100
STEP_CLIPS = 64  # clips a step


@dataclass(frozen=True)
class HeadForm:
    """All that shapes tell of a probe. blocks: with the cross-attention, which is the last."""

    width: int
    heads: int
    blocks: int
    classes: int


@dataclass(frozen=True)
class Setting:
    lr: float
    weight_decay: float


class AttentiveHead(nn.Module):
    """Tokens (B, N, D) to scores of classes (B, K)."""

    def __init__(self, form: HeadForm) -> None:
        super().__init__()
        self.form, width = form, form.width
        hidden = round(width * MLP_RATIO)
        self.blocks = nn.ModuleList(Block(width, form.heads, MLP_RATIO) for _ in range(form.blocks - 1))
        self.query = nn.Parameter(torch.empty(1, width))
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.classify = nn.Linear(width, form.classes)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Truncated normal, zero biases, residual projections of block i divided by sqrt(2 i)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2, b=2, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query, std=INIT_STD, a=-2, b=2, generator=generator)
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            block.proj.weight.div_(math.sqrt(2.0 * number))
            block.fc2.weight.div_(math.sqrt(2.0 * number))
        self.fc2.weight.div_(math.sqrt(2.0 * self.form.blocks))

    def forward(self, tokens_BND: Tensor) -> Tensor:
        batch, tokens, width = tokens_BND.shape
        if self.blocks:
            x_MD, packing = tokens_BND.flatten(0, 1), Packing((tokens,) * batch, tokens_BND.device)
            for block in self.blocks:
                x_MD = block(x_MD, None, packing, "sdpa")
            tokens_BND = x_MD.view(batch, tokens, width)
        return self.classify(self.seen(centred(tokens_BND)))

    def seen(self, centred_BND: Tensor) -> Tensor:
        """What the query makes of normed tokens (B, D), before the last layer.

        A token's key and value are never computed. Its match with the query is its product with one vector a
        head, what the key's bias adds is the same for all tokens; and the mean of values is the value of the
        mean. That is exact, and takes two products a head and token where keys and values take 4 D.
        """
        batch, _, width = centred_BND.shape
        heads, inside = self.form.heads, width // self.form.heads
        keys_HdD, values_HdD = self.kv.weight.view(2, heads, inside, width)
        query_Hd = self.q(self.query).view(heads, inside)
        match_HD = torch.einsum("hd,hdw->hw", query_Hd, keys_HdD) * self.norm1.weight / math.sqrt(inside)
        share_BHN = torch.einsum("bnw,hw->bhn", centred_BND, match_HD).softmax(-1)
        mean_BHD = share_BHN @ centred_BND * self.norm1.weight + self.norm1.bias
        taken = torch.einsum("bhw,hdw->bhd", mean_BHD, values_HdD).reshape(batch, width)
        x_BD = self.query + taken + self.kv.bias[width:]
        return x_BD + self.fc2(F.gelu(self.fc1(self.norm2(x_BD))))


def centred(tokens_BND: Tensor) -> Tensor:
    """Tokens normed over their width, without what a head learns of it, so that all heads may share it."""
    return F.layer_norm(tokens_BND, tokens_BND.shape[-1:], eps=EPS)


def settings(lrs: Sequence[float], weight_decays: Sequence[float]) -> list[Setting]:
    """Every pair of them."""
    return [Setting(lr, decay) for decay in weight_decays for lr in lrs]


def epochs_for(num_clips: int) -> int:
    """20, as published; of a small set as many as make 300 steps, up to 100."""
    steps = math.ceil(max(1, num_clips) / STEP_CLIPS)
    return min(MOST_EPOCHS, max(EPOCHS, math.ceil(LEAST_STEPS / steps)))


class SideBySide:
    """Heads of one form that learn from the same tokens, each with AdamW of its own setting.

    The learning rate falls by a cosine to zero, without warm-up; the weight decay, of all weights, stays.
    They begin with equal weights, from the seed.
    """

    def __init__(
        self, form: HeadForm, settings: Sequence[Setting], steps: int, seed: int, device: torch.device
    ) -> None:
        self.settings, self._form = tuple(settings), form
        self.heads = [AttentiveHead(form) for _ in settings]
        for head in self.heads:
            head.initialise(torch.Generator().manual_seed(seed))
            head.to(device)
        groups = [
            {"params": list(head.parameters()), "lr": one.lr, "weight_decay": one.weight_decay}
            for head, one in zip(self.heads, settings, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(groups)
        self._steps, self._done, self._device = max(1, steps), 0, device

    def add(self, tokens_BND: Tensor, labels_B: Tensor, share: float) -> None:
        """Gradients of some clips of a step; share: one over how many clips the step has."""
        labels = labels_B.to(self._device)
        loss = torch.zeros((), device=self._device)
        for scores in self._scores(tokens_BND):
            loss = loss + F.cross_entropy(scores, labels, reduction="sum") * share
        loss.backward()

    def _scores(self, tokens_BND: Tensor) -> Iterator[Tensor]:
        """Each head's scores (B, K), float32. What of the tokens no head changes is computed once."""
        tokens = tokens_BND.to(self._device).float()
        shared = centred(tokens) if self._form.blocks == 1 else None
        for head in self.heads:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
                scores = head(tokens) if shared is None else head.classify(head.seen(shared))
            yield scores.float()

    def step(self) -> None:
        factor = 0.5 * (1 + math.cos(math.pi * self._done / self._steps))
        for group, setting in zip(self._optimizer.param_groups, self.settings, strict=True):
            group["lr"] = setting.lr * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._done += 1

    @torch.no_grad()
    def shares(self, tokens_BVND: Tensor) -> Tensor:
        """Each head's probabilities of the classes (heads, B, K), means over the V views of a clip."""
        views = tokens_BVND.shape[1]
        each = self._scores(tokens_BVND.flatten(0, 1))
        return torch.stack([x.softmax(-1).unflatten(0, (-1, views)).mean(1).cpu() for x in each])


def plain(setting: Setting) -> dict[str, float]:
    return asdict(setting)
