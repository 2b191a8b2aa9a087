"""DyQLoRA-FA and DyA-MoPE as PEFT adapters. PEFT knows them once this package is imported, also to load one.

    config = DyQLoRAFAConfig(r_min=4, r_max=16)
    model = peft.get_peft_model(base, config)
    hold_inactive(model, optimizer)
    for step in ...:
        set_rank(model, rank_at(seed, step, config.r_min, config.r_max))
        ...  # forward, backward, optimizer.step()

Knows nothing about micrographs: any model with linear layers will do, in full precision or in 4-bit NF4.
"""

from assistant.adapters.config import AdapterError, DyAMoPEConfig, DyQLoRAFAConfig
from assistant.adapters.export import export_lora
from assistant.adapters.model import DyAMoPEModel, DyQLoRAFAModel, register
from assistant.adapters.nf4 import prepare_nf4
from assistant.adapters.rank import hold_inactive, rank_at, set_rank
from assistant.adapters.routing import expert_usage_entropy, router_losses

__all__ = [
    "AdapterError",
    "DyAMoPEConfig",
    "DyAMoPEModel",
    "DyQLoRAFAConfig",
    "DyQLoRAFAModel",
    "expert_usage_entropy",
    "export_lora",
    "hold_inactive",
    "prepare_nf4",
    "rank_at",
    "router_losses",
    "set_rank",
]

register()
