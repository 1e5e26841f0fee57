"""Write outputs.json: what the code that Meta released computes for the cases.

    python -m tests.published.make jepa CHECKOUT COMMIT      (github.com/facebookresearch/jepa)
    python -m tests.published.make vjepa2 CHECKOUT COMMIT    (github.com/facebookresearch/vjepa2)

Run by hand; their code is imported from the checkout and nothing of it is kept but figures. What they import
and these cases do not use (timm, torchvision) need not be installed.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.masks import sample_masks
from tests.pretrain.meta_layout import meta_encoder, meta_predictor
from tests.published.cases import (
    ACTION,
    CASES,
    CLIPS,
    FEATURE_STRIDE,
    FRAMES,
    HEADS,
    INSIDE,
    PATCH,
    SIZE,
    STEP,
    WIDTH,
    Case,
    numbers,
    token_lists,
)

OUTPUTS = Path(__file__).with_name("outputs.json")
NORM = partial(nn.LayerNorm, eps=1e-6)
SHAPE: dict[str, Any] = {
    "patch_size": PATCH,
    "num_frames": FRAMES,
    "tubelet_size": 2,
    "uniform_power": True,
    "num_heads": HEADS,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "norm_layer": NORM,
}


def main() -> None:
    repository, checkout, commit = sys.argv[1:]
    for name in ("timm", "timm.models", "timm.models.layers", "torchvision"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["timm.models.layers"].drop_path = lambda x, *_, **__: x  # type: ignore[attr-defined]
    torch.backends.cuda.sdp_kernel = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment]
    sys.path.insert(0, checkout)
    torch.set_num_threads(1)
    found = json.loads(OUTPUTS.read_text()) if OUTPUTS.exists() else {}
    for name, case in CASES.items():
        if case.source.split("-")[0] == repository:
            run = {"jepa": jepa, "vjepa2": vjepa2, "vjepa2-1": vjepa2_1, "vjepa2-ac": vjepa2_ac}[case.source]
            found[name] = {"commit": commit, "torch": torch.__version__, **run(case)}
            print(name, found[name]["loss"])
    OUTPUTS.write_text(json.dumps({name: found[name] for name in CASES if name in found}, indent=1) + "\n")


def jepa(case: Case) -> dict[str, Any]:
    from src.models.predictor import VisionTransformerPredictor
    from src.models.utils.multimask import MultiMaskWrapper, PredictorMultiMaskWrapper
    from src.models.vision_transformer import VisionTransformer

    shape = SHAPE | {"img_size": SIZE}
    encoder, target = (
        MultiMaskWrapper(filled(VisionTransformer(embed_dim=WIDTH, depth=case.depth, **shape), case, part))
        for part in ("context", "target")
    )
    predictor = VisionTransformerPredictor(
        embed_dim=WIDTH, predictor_embed_dim=INSIDE, depth=2, use_mask_tokens=True, num_mask_tokens=2, **shape
    )
    predictor = PredictorMultiMaskWrapper(filled(predictor, case, "predictor"))
    lists, kept, hidden = masks(case)
    with torch.no_grad():
        features = F.layer_norm(target(case.clips()), (WIDTH,))
        wanted = [features.gather(1, index_of(tokens, WIDTH)) for tokens in hidden]
    said = predictor(encoder(case.clips(), kept), wanted, kept, hidden)
    loss = sum(F.l1_loss(a, b) for a, b in zip(said, wanted, strict=True)) / len(said)
    return told(loss, features, encoder, predictor) | {"masks": lists}


def vjepa2(case: Case) -> dict[str, Any]:
    from src.models.predictor import VisionTransformerPredictor
    from src.models.vision_transformer import VisionTransformer
    from src.utils.wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

    shape = SHAPE | {"img_size": (SIZE, SIZE), "use_rope": True}
    encoder, target = (
        MultiSeqWrapper(filled(VisionTransformer(embed_dim=WIDTH, depth=case.depth, **shape), case, part))
        for part in ("context", "target")
    )
    predictor = VisionTransformerPredictor(
        embed_dim=WIDTH, predictor_embed_dim=INSIDE, depth=2, use_mask_tokens=True, num_mask_tokens=1, **shape
    )
    predictor = PredictorMultiSeqWrapper(filled(predictor, case, "predictor"))
    lists, kept, hidden = masks(case)
    clips = [case.clips()]
    with torch.no_grad():
        features = F.layer_norm(target(clips)[0], (WIDTH,))
    (said,) = predictor(encoder(clips, [kept]), [kept], [hidden])
    pairs = [(a, features.gather(1, index_of(h, WIDTH))) for a, h in zip(said, hidden, strict=True)]
    loss = sum(F.l1_loss(a, b) for a, b in pairs) / len(pairs)
    return told(loss, features, encoder, predictor) | {"masks": lists}


def vjepa2_1(case: Case) -> dict[str, Any]:
    from app.vjepa_2_1.models.predictor import VisionTransformerPredictor
    from app.vjepa_2_1.models.utils.masks_dist import compute_mask_distance
    from app.vjepa_2_1.models.vision_transformer import VisionTransformer
    from app.vjepa_2_1.wrappers import MultiSeqWrapper, PredictorMultiSeqWrapper

    shape = SHAPE | {
        "img_size": (SIZE, SIZE),
        "use_rope": True,
        "interpolate_rope": True,
        "modality_embedding": True,
        "img_temporal_dim_size": 1,
    }
    encoder, target = (
        MultiSeqWrapper(filled(VisionTransformer(embed_dim=WIDTH, depth=case.depth, **shape), case, part))
        for part in ("context", "target")
    )
    predictor = VisionTransformerPredictor(
        embed_dim=WIDTH,
        predictor_embed_dim=INSIDE,
        depth=case.predictor["depth"],
        use_mask_tokens=True,
        num_mask_tokens=1,
        return_all_tokens=True,
        **shape,
    )
    predictor = PredictorMultiSeqWrapper(filled(predictor, case, "predictor"))
    lists, kept, hidden = masks(case)
    clips, levels = [case.clips()], len(case.encoder["levels"])
    with torch.no_grad():
        features = target(clips, training_mode=True)[0]
        features = F.layer_norm(features.unflatten(-1, (levels, WIDTH)), (WIDTH,)).flatten(-2)
    seen = encoder(clips, [kept], training_mode=True)
    modality = "image" if case.are_pictures else "video"
    (said,), (said_context,) = predictor(seen, [kept], [hidden], mod=modality)
    (distance,) = compute_mask_distance([hidden], [kept], SIZE // PATCH, False)
    losses = []
    for at, (k, h) in enumerate(zip(kept, hidden, strict=True)):
        error = (said[at] - features.gather(1, index_of(h, levels * WIDTH))).abs()
        context = (said_context[at] - features.gather(1, index_of(k, levels * WIDTH))).abs()
        # Half of the weight 0.5: the warm-up from step 10 to 30 is half over.
        losses.append(error.mean() + 0.25 * (context / distance[at].unsqueeze(2)).mean())
    return told(sum(losses) / len(losses), features, encoder, predictor) | {"masks": lists}


def vjepa2_ac(case: Case) -> dict[str, Any]:
    from src.models.ac_predictor import VisionTransformerPredictorAC

    predictor = VisionTransformerPredictorAC(
        img_size=(SIZE, SIZE),
        embed_dim=WIDTH,
        predictor_embed_dim=INSIDE,
        depth=2,
        action_embed_dim=ACTION,
        **SHAPE | {"tubelet_size": 1, "use_rope": True},
    )
    filled(predictor, case, "predictor")
    tokens = (SIZE // PATCH) ** 2
    said = predictor(
        numbers("features", (CLIPS, FRAMES * tokens, WIDTH)),
        numbers("actions", (CLIPS, FRAMES, ACTION)),
        numbers("states", (CLIPS, FRAMES, ACTION)),
    )
    wrapped = nn.Module()
    wrapped.backbone = predictor
    loss = F.l1_loss(said, numbers("wanted", tuple(said.shape)))
    return told(loss, said.detach(), None, wrapped) | {"masks": None}


def filled(module: nn.Module, case: Case, part: str) -> nn.Module:
    """Their module with the case's numbers, every parameter but tables of positions and what is unused."""
    weights = case.weights("target" if part == "target" else "context")
    state = meta_predictor(weights) if part == "predictor" else meta_encoder(weights, case.norms)
    known = module.load_state_dict(state, strict=False)
    unused = ("pos_embed", "predictor_pos_embed", "extrinsics_encoder.weight", "extrinsics_encoder.bias")
    assert not known.unexpected_keys and set(known.missing_keys) <= set(unused), known
    return module


def masks(case: Case) -> tuple[dict[str, Any], list[Tensor], list[Tensor]]:
    objective, pictures = case.config.objective, (case.are_pictures,) * CLIPS
    drawn = sample_masks(
        objective.masks, case.config.grid, 0, STEP, range(CLIPS), truncate="raster",
        pictures=pictures, picture_configs=objective.picture_masks if case.are_pictures else (),
    )  # fmt: skip
    lists = token_lists(drawn)
    return lists, *([torch.tensor(kind) for kind in lists[key]] for key in ("kept", "hidden"))


def index_of(tokens: Tensor, width: int) -> Tensor:
    return tokens[..., None].expand(-1, -1, width)


def told(loss: Tensor, features: Tensor, encoder: nn.Module | None, predictor: nn.Module) -> dict[str, Any]:
    """The loss, some features, and the norm of every gradient by Meta's names."""
    loss.backward()
    modules = {"encoder": encoder, "predictor": predictor}
    gradients = {
        f"{part}.{name.removeprefix('backbone.')}": float(f"{float(parameter.grad.norm()):.7g}")
        for part, module in modules.items()
        if module is not None
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return {
        "loss": float(loss.detach()),
        "features": features[:, -1, ::FEATURE_STRIDE].tolist(),
        "gradients": gradients,
    }


if __name__ == "__main__":
    main()
