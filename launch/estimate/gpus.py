"""What GPUs have, as their makers say, and what one may state instead."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data_pipeline.errors import UsageError
from pretrain.peaks import PEAKS


@dataclass(frozen=True)
class Gpu:
    """One device of a rank. Bytes, dense TFLOP/s by precision, and bytes a second that it sends.

    link: to its neighbours in a node, one direction. network: to other nodes, its share of the node's.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    link: float
    network: float
    device: str = "cuda"

    def peak(self, precision: str) -> float:
        """FLOP/s. In fp32 products are taken in TF32, as runs are set up on CUDA."""
        return 1e12 * (self.bf16 if precision == "bf16" else self.fp32)


def _gpu(name: str, known_as: str, memory_gb: float, link_gb: float, network_gbit: float) -> Gpu:
    peak = PEAKS[known_as]
    return Gpu(name, memory_gb * 1e9, peak.bf16, peak.tf32, link_gb * 1e9, network_gbit / 8 * 1e9)


# Memory and NVLink (or PCIe): NVIDIA's data sheets of A100 (2021), H100 (2023), H200 (2024), DGX B200 (2024),
# L40S (2023), and its page of the RTX 4090; half of the figure for both directions. Network: DGX H100, H200
# and B200 have 8 × 400 Gbit/s for 8 GPUs, DGX A100 8 × 200 Gbit/s. Those of the L40S and the 4090 are
# assumed, as they come in machines of all kinds.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", "H100 80GB HBM3", 80, 450, 400),
        _gpu("h200", "H200", 141, 450, 400),
        _gpu("b200", "B200", 180, 900, 400),
        _gpu("a100-80", "A100", 80, 300, 200),
        _gpu("a100-40", "A100", 40, 300, 200),
        _gpu("l40s", "L40S", 48, 32, 100),
        _gpu("rtx4090", "RTX 4090", 24, 32, 25),
    )
}
CPU_NETWORK = 10 / 8 * 1e9  # bytes a second; assumed
ASSUMED_NETWORK = ("l40s", "rtx4090", "cpu")


def gpu_of(name: str, tflops: float | None, memory_gb: float | None, network_gbit: float | None) -> Gpu:
    """The device named, with what is stated in place of its own.

    Raises: UsageError for a name that is not known, and for cpu without its figures.
    """
    if name == "cpu":
        missing = [
            option for option, given in (("--tflops", tflops), ("--memory", memory_gb)) if given is None
        ]
        if missing:
            raise UsageError(
                f"--gpu is cpu: need {' and '.join(missing)} too, what a rank computes and holds, such as "
                f"--tflops 1 --memory 64"
            )
        found = Gpu("cpu", 0.0, 0.0, 0.0, CPU_NETWORK, CPU_NETWORK, "cpu")
    elif name in GPUS:
        found = GPUS[name]
    else:
        raise UsageError(f"--gpu is {name!r}: need {', '.join(GPUS)} or cpu (with --tflops and --memory)")
    if tflops is not None:
        found = replace(found, bf16=tflops, fp32=tflops)
    if memory_gb is not None:
        found = replace(found, memory=memory_gb * 1e9)
    if network_gbit is not None:
        found = replace(found, network=network_gbit / 8 * 1e9)
    return found
