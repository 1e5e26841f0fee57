"""`foreframe probe`: what an encoder's features tell; `foreframe labels`: published labels as our lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipeline.errors import UsageError

KIND_HELP = (
    "attentive, linear, knn (labels), states, retrieval (clips of the same video); several between commas. "
    "Without it all that the data allow."
)


def probe(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_WEIGHTS",
            help="A run's folder; or weights: an exported or imported folder, one of Hugging Face, a .pt.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SHARDS", help="Data set to probe on; without it the run's probe.data, or its own."
        ),
    ] = None,
    kind: Annotated[str | None, typer.Option(metavar="KINDS", help=KIND_HELP)] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Checkpoint's step; without it the last.")] = None,
    segments: Annotated[int, typer.Option(min=1, help="Segments of each clip, spread over its time.")] = 1,
    views: Annotated[
        int, typer.Option(min=1, help="Crops of each eval clip, spread over its longer side.")
    ] = 1,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a segment; without it as the encoder was trained.")
    ] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Frames a second; the same.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Height and width in pixels; the same.")] = None,
    all_clips: Annotated[
        bool,
        typer.Option(
            "--all-clips", help="All clips, not only probe.train_clips and probe.eval_clips of them."
        ),
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of attentive heads; without it 20, of small sets up to 100.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Of an attentive head: 1 as V-JEPA, 4 as V-JEPA 2.")] = 1,
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="Its learning rates, trained side by side; without it 3e-3,1e-3,3e-4."
        ),
    ] = None,
    weight_decay: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help="Its weight decays, each with every rate; without it 0.01,0.4."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cpu, or auto: cuda where there is one.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the result; without it the run's, or of weights probe-NAME here."),
    ] = None,
) -> None:
    """Measure what frozen features tell, beside the untrained encoder; writes probe.json and heads."""
    from launch.console import Stages, make_console, probe_table
    from launch.results import probe_any
    from pretrain.probe.classify import Heads
    from pretrain.probe.kinds import kinds_of
    from pretrain.probe.offline import Asked

    given = {"lrs": lr, "weight_decays": weight_decay}
    chosen = {name: numbers(text, name) for name, text in given.items() if text is not None}
    asked = Asked(
        data=data,
        kinds=None if kind is None else kinds_of(kind),
        segments=segments,
        views=views,
        heads=Heads(blocks=blocks, epochs=epochs, **chosen),
        frames=frames,
        fps=fps,
        size=size,
        all_clips=all_clips,
        device=device,
    )
    console = make_console()
    with Stages(console).showing() as report:
        found, folder = probe_any(subject, asked, step=step, out=out, progress=report)
    for table in probe_table(found):
        console.print(table)
    if found["unreadable"]:
        print(f"left out  {len(found['unreadable'])} clips that could not be read; probe.json names them")
    for head in sorted((folder / "probes").glob("[!.]*")) if "labels" in found else ():
        print(f"head   {head}")
    print(f"wrote  {folder / 'probe.json'}")
    if (subject / "config.yaml").is_file() and out is None:
        print(f"next   foreframe report {subject}")


def numbers(text: str, name: str) -> tuple[float, ...]:
    """`1e-3,3e-4` as numbers. Raises: UsageError."""
    option = {"lrs": "--lr", "weight_decays": "--weight-decay"}[name]
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= number < float("inf") for number in found):
        raise UsageError(f"{option} is {text!r}: need numbers between commas, such as 1e-3,3e-4")
    return found


def labels(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The published file of labels.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.csv", help="The list to write, a source of a data config.")
    ],
    layout: Annotated[
        str, typer.Option("--format", help="kinetics, paths (path and label a line), ssv2 or diving48.")
    ],
    videos: Annotated[Path, typer.Option(help="Folder that holds the videos, at any depth.")],
    names: Annotated[
        Path | None,
        typer.Option(help="Names of the labels: labels.json of ssv2, the vocabulary of diving48."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train or eval, for all lines; without it as the file says.")
    ] = None,
    untrimmed: Annotated[
        bool,
        typer.Option("--untrimmed", help="Of kinetics: files named by their id alone are whole videos."),
    ] = False,
) -> None:
    """Turn a published file of labels into a list, of which `foreframe shard` makes a labelled data set."""
    from data_pipeline.published import FORMATS, convert

    if layout not in FORMATS:
        raise UsageError(f"--format is {layout!r}: need {', '.join(FORMATS)}")
    if split not in (None, "train", "eval"):
        raise UsageError(f"--split is {split!r}: need train or eval")
    told = convert(source, out, layout, videos, names=names, split=split, is_untrimmed=untrimmed)
    print(f"wrote  {out}: {told.num_lines} videos of {told.num_labels} labels")
    if told.missing:
        print(
            f"missing  {len(told.missing)} listed videos are not below {videos}, the first: {told.missing[0]}"
        )
    if told.passed:
        print(f"passed over  {len(told.passed)} lines, the first: {told.passed[0]}")
    shard = f"foreframe shard configs/data/folder.yaml 'sources=[{out}]' root={videos} cut.kind=spans"
    print(f"next   {shard} out=data/labelled")
