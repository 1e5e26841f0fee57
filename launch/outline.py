"""What a run's settings amount to: batch, steps, schedule; weights and masks by building and drawing them."""

from __future__ import annotations

from collections.abc import Iterable

from pretrain.config import RunConfig, plan
from pretrain.config.masks import BlockMaskConfig, FutureMaskConfig, MaskConfig
from pretrain.schedule import Knobs, knobs_at

DRAWN_CLIPS = 256


def consequences(config: RunConfig, num_ranks: int) -> list[str]:
    """What follows by arithmetic alone, without torch: clip, batch, run, schedule.

    Raises: ConfigError when the batch cannot be split over `num_ranks`.
    """
    laid_out = plan(config, num_ranks)
    data, train = config.data, config.train
    frames, rows, columns = config.grid
    tokens = f"{frames} × {rows} × {columns} = {frames * rows * columns:,} tokens"
    if config.objective.kind == "action_latent":
        tokens = f"each frame by itself, {rows} × {columns} = {rows * columns:,} tokens"
    split = f"{_count(num_ranks, 'rank')} × {_count(laid_out.micro_batches, 'forward')}"
    return [
        _row(
            "a clip",
            f"{data.frames} frames over {data.frames / data.fps:.3g} s, {data.size}² pixels: {tokens}",
        ),
        _row("batch", f"{train.global_batch:,} clips a step = {split} × {_count(train.micro_batch, 'clip')}"),
        _row(
            "the run",
            f"{_count(train.steps, 'step')}, {train.steps * train.global_batch:,} clips, "
            f"into {config.out}/{config.name}",
        ),
        *_schedule(config),
    ]


def measured(config: RunConfig) -> list[str]:
    """What is built and drawn to be known: the number of weights, the tokens kept and hidden by each mask."""
    sizes = {name: f"{number / 1e6:,.1f} M" for name, number in num_parameters(config).items()}
    width, depth, heads, _ = config.model.encoder.shape
    frozen = ", frozen" if config.objective.kind == "action_latent" else ""
    predictor = config.model.predictor
    row = (
        f"width {predictor.width}, {predictor.depth} blocks, {predictor.heads} heads, "
        f"{sizes['predictor']} parameters"
    )
    if config.objective.kind == "states":
        row = f"a linear layer to {config.objective.num_outputs} numbers a tubelet, in its place"
    return [
        _row(
            "encoder", f"width {width}, {depth} blocks, {heads} heads, {sizes['encoder']} parameters{frozen}"
        ),
        _row("predictor", row),
        *_masks(config),
    ]


def num_parameters(config: RunConfig) -> dict[str, int]:
    """Weights of the `encoder` and of the `predictor`, counted without memory for them."""
    from pretrain.objective.make import shapes_of

    made, encoder = shapes_of(config)  # to draw weights, torch would load sympy: seconds, for nothing
    return {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in (("encoder", encoder), ("predictor", made.get_submodule("predictor")))
    }


def mean_kept_and_hidden(config: RunConfig) -> list[tuple[MaskConfig, float, float, int]]:
    """(mask kind, mean tokens kept, mean hidden, tokens of a clip or picture) of the objective's kinds."""
    from pretrain.masks import sample_masks

    objective, grid = config.objective, config.grid
    found = []
    for configs, own in ((objective.masks, grid), (objective.picture_masks, (1, *grid[1:]))):
        if not configs or (configs is objective.picture_masks and config.model.encoder.pictures != "own"):
            continue
        # Boxes have one size a step, so many steps of one clip; what is cut depends on the whole forward.
        clips = 1 if objective.truncate == "none" else config.train.micro_batch
        drawn = [
            sample_masks(configs, own, config.seed, step, range(step * clips, step * clips + clips),
                         truncate=objective.truncate)
            for step in range(max(16, DRAWN_CLIPS // clips))
        ]  # fmt: skip
        total = len(drawn) * clips
        for kind, mask in enumerate(configs):
            kept, hidden = (
                sum(
                    n
                    for masks in drawn
                    for k, n in zip(masks.kinds, lengths(masks), strict=True)
                    if k == kind
                )
                for lengths in (lambda m: m.kept_lengths, lambda m: m.hidden_lengths)
            )
            found.append((mask, kept / total, hidden / total, own[0] * own[1] * own[2]))
    return found


def _masks(config: RunConfig) -> Iterable[str]:
    rows = mean_kept_and_hidden(config)
    pictures = len(config.objective.masks)
    for number, (mask, kept, hidden, tokens) in enumerate(rows):
        of = "of a picture " if number >= pictures else ""
        yield _row(
            f"mask {number}",
            f"{_named(mask)} {of}hidden: keeps {kept:,.0f} tokens ({kept / tokens:.0%}), "
            f"hides {hidden:,.0f} ({hidden / tokens:.0%})",
        )
    if len(rows[:pictures]) > 1:
        kept = sum(row[1] for row in rows[:pictures])
        yield _row("", f"{kept:,.0f} tokens a clip through the encoder, under all its masks together")


def _named(mask: MaskConfig) -> str:
    if isinstance(mask, BlockMaskConfig):
        low, high = mask.spatial_scale
        share = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
        return f"{mask.blocks} boxes of {share}"
    if isinstance(mask, FutureMaskConfig):
        return "the future"
    return "tubes at random places"


def _schedule(config: RunConfig) -> Iterable[str]:
    """A small table: what the knobs are at the steps where something begins or ends."""
    optim, steps, total = config.optim, config.train.steps, config.schedule_steps
    marks = {1: "first", steps: "last"}
    if 1 < optim.warmup_steps < steps:
        marks[optim.warmup_steps] = "warmed up"
    if optim.decay_steps is not None and 1 < (begin := total - optim.decay_steps) < steps:
        marks.setdefault(begin, "decay begins")
    columns = [(f"{name} {step:,}", knobs_at(step - 1, config)) for step, name in sorted(marks.items())]
    if total > steps:
        columns.append((f"(end {total:,})", knobs_at(total - 1, config)))
    rows = {
        "lr": [f"{knobs.lr:.3g}" for _, knobs in columns],
        "weight decay": [f"{knobs.weight_decay:.3g}" for _, knobs in columns],
    }
    if config.target.kind == "ema":
        rows["momentum"] = [_momentum(knobs) for _, knobs in columns]
    widths = [
        max(len(head), *(len(cells[number]) for cells in rows.values()))
        for number, (head, _) in enumerate(columns)
    ]

    def line(label: str, cells: Iterable[str]) -> str:
        padded = "   ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"  {label:<14}{padded}".rstrip()

    yield line("at step", (head for head, _ in columns))
    for label, cells in rows.items():
        yield line(label, cells)


def _momentum(knobs: Knobs) -> str:
    return f"{knobs.momentum:.6f}".rstrip("0").ljust(3, "0")


def _row(label: str, text: str) -> str:
    return f"{label:<11}{text}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
