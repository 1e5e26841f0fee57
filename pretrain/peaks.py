"""The most that a GPU can multiply, as its maker says: what a share of the peak is a share of."""

from __future__ import annotations

from typing import NamedTuple


class Peak(NamedTuple):
    """Dense TFLOP/s of the tensor cores with sums in float32, by the precision of what is multiplied."""

    bf16: float
    tf32: float


# Makers print figures with sparsity, which are twice these. The first name that fits counts.
# NVIDIA's data sheets: A100 (2021), H100 (2023), H200 (2024), HGX B200 (2024: 4.5 and 2.2 PFLOP/s,
# with sparsity), L40S (2023); whitepapers of Ada, v2.1, appendix A, and of GA102, v2.1, table 2, for the 4090
# and the 3090. A V100 has neither bf16 nor TF32: nothing is said of it.
PEAKS: dict[str, Peak] = {
    "H100 PCIe": Peak(756.5, 378.0),
    "H100 NVL": Peak(835.5, 417.5),
    "H200 NVL": Peak(835.5, 417.5),
    "H100 80GB HBM3": Peak(989.4, 494.7),  # SXM
    "H200": Peak(989.4, 494.7),
    "B200": Peak(2250.0, 1100.0),
    "A100": Peak(312.0, 156.0),
    "L40S": Peak(362.0, 183.0),
    "RTX 4090": Peak(165.2, 82.6),
    "RTX 3090": Peak(71.0, 35.6),
}
OTHERS = ("MIG", "GB200", "Laptop", "4090 D", "3090 Ti")  # parts, or relatives with other figures


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Of a GPU by the name that CUDA gives it, in a run of that train.precision; None where it is not known.

    In fp32 products are taken in TF32, as runs are set up on CUDA.
    """
    if any(other in device_name for other in OTHERS):
        return None
    for name, peak in PEAKS.items():
        if name in device_name:
            return peak.bf16 if precision == "bf16" else peak.tf32
    return None
