"""DyQLoRA-FA and DyA-MoPE as PEFT adapters. PEFT knows them once this package is imported, also to load one.

    config = DyQLoRAFAConfig(r_min=4, r_max=16)
    model = peft.get_peft_model(base, config)
    hold_inactive(model, optimizer)
    for step in ...:
        draw_ranks(model, seed, step)
        ...  # forward, backward, optimizer.step()

Knows nothing about micrographs: any model with linear layers will do, in full precision or in 4-bit NF4.
"""

import assistant.adapters.uncompiled  # noqa: F401  # isort: skip - before anything imports PEFT
from assistant.adapters.config import AdapterError, DyAMoPEConfig, DyQLoRAFAConfig
from assistant.adapters.export import export_lora
from assistant.adapters.model import DyAMoPEModel, DyQLoRAFAModel, base_alone, peft_config, register
from assistant.adapters.nf4 import prepare_nf4, unpack_nf4
from assistant.adapters.precondition import precondition
from assistant.adapters.rank import draw_ranks, hold_inactive, rank_at, set_rank
from assistant.adapters.routing import count_tokens, expert_usage_entropy, has_routers, router_losses

__all__ = [
    "AdapterError",
    "DyAMoPEConfig",
    "DyAMoPEModel",
    "DyQLoRAFAConfig",
    "DyQLoRAFAModel",
    "base_alone",
    "count_tokens",
    "draw_ranks",
    "expert_usage_entropy",
    "export_lora",
    "has_routers",
    "hold_inactive",
    "peft_config",
    "precondition",
    "prepare_nf4",
    "rank_at",
    "router_losses",
    "set_rank",
    "unpack_nf4",
]

register()
