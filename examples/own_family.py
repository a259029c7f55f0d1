r"""Add your own backbone family: name the modules that the experts stand next to.

    python examples/own_family.py

The table is `FAMILIES` in `fftmoe/adapter/families.py`. A recipe has no key for target modules, so a federation with
such a backbone needs a row there: `"gpt_neox": ModelFamily(r"(?:.*\.)?layers\.(\d+)\.mlp", "input")`.
"""

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import fftmoe
from fftmoe import adapter

if __name__ == "__main__":
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=31, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    backbone = GPTNeoXForCausalLM(config)
    modules = r".*\.layers\.\d+\.mlp"  # each is called with its input only
    experts = fftmoe.MoeAdapterConfig(num_experts=8, expert_dim=16, top_k=2, target_modules=modules, blocks="last-2")
    model = fftmoe.attach_adapter(backbone, experts)
    print(f"blocks with experts: {sorted(adapter.blocks(model))} of 0 to 2")

    # The texts count on by seven: the adapter learns it, and the backbone stays frozen.
    texts = (torch.arange(48)[:, None] * 7 + torch.arange(10)) % 29
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(30):
        losses.append(model(input_ids=texts, labels=texts).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {losses[0].item():.2f} before training, {losses[-1].item():.2f} after {len(losses)} steps")
