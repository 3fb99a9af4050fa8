"""Accelerate: networks, optimizers and loader prepared, two `accelerator.backward` calls an iteration."""

import torch
from accelerate import Accelerator
from torch import nn

torch.manual_seed(3)
accelerator = Accelerator(cpu=True)
batch_size, z_dim = 6, 5

generator = nn.Sequential(nn.Linear(z_dim, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16))
discriminator = nn.Sequential(nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))
loader = torch.utils.data.DataLoader(torch.randn(5 * batch_size, 16), batch_size=batch_size)
optimizer_G = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.999))
optimizer_D = torch.optim.AdamW(discriminator.parameters(), lr=0.01, betas=(0.5, 0.999), weight_decay=0.1)
generator, discriminator, optimizer_G, optimizer_D, loader = accelerator.prepare(
    generator, discriminator, optimizer_G, optimizer_D, loader
)
bce = nn.functional.binary_cross_entropy_with_logits


def one(output):
    return bce(output, torch.ones_like(output))


def zero(output):
    return bce(output, torch.zeros_like(output))


for real in loader:
    fake = generator(torch.randn(len(real), z_dim, device=accelerator.device))

    optimizer_D.zero_grad()
    loss_D = one(discriminator(real)) + zero(discriminator(fake.detach()))
    accelerator.backward(loss_D)
    optimizer_D.step()

    optimizer_G.zero_grad()
    loss_G = one(discriminator(fake))
    accelerator.backward(loss_G)
    optimizer_G.step()

result = accelerator.unwrap_model(generator)
