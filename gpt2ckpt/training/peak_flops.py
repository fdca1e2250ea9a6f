"""What GPUs compute at most: what the model FLOPs utilization (MFU) is a share of.

Dense matrix products, as the data sheets of NVIDIA give them, without sparsity. In float32 the
matrix products of a training are made in TF32 where a GPU has it (hardware.py), and so is the peak.
"""

import re

_TERA = 1e12
_SIXTEEN = ("bfloat16", "float16")
# A name's first match counts. In 16 bits with sums in float32, then in float32 or TF32.
_PEAKS = (
    (r"\bB200\b", 2250.0, 1125.0),
    (r"\bGH200\b", 989.4, 494.7),
    (r"\bH200 NVL\b", 835.5, 417.5),
    (r"\bH200\b", 989.4, 494.7),
    (r"\bH100 NVL\b", 835.5, 417.5),
    (r"\bH100 PCIe\b", 756.0, 378.0),
    (r"\bH100 80GB HBM3\b", 989.4, 494.7),
    (r"\bA100\b", 312.0, 156.0),
    (r"\bA30\b", 165.0, 82.0),
    (r"\bA40\b", 149.7, 74.8),
    (r"\bA10\b", 125.0, 62.5),
    (r"\bL40S\b", 362.0, 183.0),
    (r"\bL40\b", 181.0, 90.5),
    (r"\bL4\b", 121.0, 60.0),
    (r"\bRTX A6000\b", 154.8, 77.4),
    (r"\bRTX 4090$", 165.2, 82.6),
    (r"\bRTX 3090$", 71.0, 35.6),
    (r"\bV100-SXM2\b", 125.0, 15.7),
    (r"\bV100-PCIE\b", 112.0, 14.0),
    (r"\bT4\b", 65.0, 8.1),
)
_WITHOUT_BFLOAT16 = re.compile(r"\b(V100|T4)\b")


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak of a CUDA device in floating-point operations per second.

    None if it is not known: a name that is not in the table, a precision that the device has no
    units for, or a part of a GPU (MIG).
    """
    if "MIG" in device_name:
        return None
    if precision == "bfloat16" and _WITHOUT_BFLOAT16.search(device_name):
        return None
    for pattern, sixteen, thirty_two in _PEAKS:
        if re.search(pattern, device_name):
            return _TERA * (sixteen if precision in _SIXTEEN else thirty_two)
    return None
