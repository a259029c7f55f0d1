"""Generate text with the adapter attached: a tiny Llama with random weights learns to count and then continues a count.

python examples/generate.py
"""

import torch
import transformers

import fftmoe


def counting(num_texts: int, length: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Return token ids [num_texts, length] that count up by one from a random start, modulo the vocabulary size."""
    first = torch.randint(vocabulary, (num_texts, 1), generator=torch.Generator().manual_seed(seed))
    return (first + torch.arange(length)) % vocabulary


if __name__ == "__main__":
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=23,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    backbone = transformers.LlamaForCausalLM(config)
    experts = fftmoe.MoeAdapterConfig(num_experts=8, expert_dim=16, top_k=2, balance_strength=0.01, z_strength=0.001)
    model = fftmoe.attach_adapter(backbone, experts).train()

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(150):
        ids = counting(32, 12, config.vocab_size, seed=step)
        # In training mode the model's loss includes the router losses, with the strengths of the configuration.
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"loss {loss.item():.2f}; only the adapter was trained: {sum(p.numel() for p in trained)} parameters")

    model.eval()
    prompt = torch.tensor([[5, 6, 7, 8]])
    text = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    print("continued count:", text[0].tolist())
