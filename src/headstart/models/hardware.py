"""What the hardware is good at.

May import layers 0 and 1.
"""

from __future__ import annotations

import torch

__all__ = ["has_fast_bfloat16"]


def has_fast_bfloat16(device_type: str) -> bool:
    """Say whether the hardware multiplies bfloat16 matrices itself (AVX-512 BF16 or AMX; Ampere and later).

    Without it bfloat16 is emulated and slower than float32.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return False
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512"):
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
