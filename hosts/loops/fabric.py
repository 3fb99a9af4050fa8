"""Lightning Fabric, in the shape of its own DCGAN example: networks with their optimizers set up, `fabric.backward`."""

import torch
from lightning.fabric import Fabric
from torch import nn

torch.manual_seed(4)
batch_size, nz = 6, 5
fabric = Fabric(accelerator="cpu", devices=1)

generator = nn.Sequential(
    nn.ConvTranspose2d(nz, 6, 4, 1, 0, bias=False),
    nn.BatchNorm2d(6),
    nn.ReLU(True),
    nn.ConvTranspose2d(6, 1, 4, 2, 1, bias=False),
    nn.Tanh(),
)
discriminator = nn.Sequential(
    nn.Conv2d(1, 4, 4, 2, 1, bias=False),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(4, 6, 3, 1, 1, bias=False),
    nn.BatchNorm2d(6),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(6, 1, 4, 1, 0, bias=False),
    nn.Sigmoid(),
)
optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.01, betas=(0.5, 0.999))
optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.999))
discriminator, optimizer_d = fabric.setup(discriminator, optimizer_d)
generator, optimizer_g = fabric.setup(generator, optimizer_g)
dataset = torch.rand(5 * batch_size, 1, 8, 8) * 2 - 1
dataloader = fabric.setup_dataloaders(torch.utils.data.DataLoader(dataset, batch_size=batch_size))
criterion = nn.BCELoss()

for real in dataloader:
    real_label = torch.ones(len(real), device=fabric.device)
    fake_label = torch.zeros(len(real), device=fabric.device)

    discriminator.zero_grad()
    err_d_real = criterion(discriminator(real).view(-1), real_label)
    fabric.backward(err_d_real)
    fake = generator(torch.randn(len(real), nz, 1, 1, device=fabric.device))
    err_d_fake = criterion(discriminator(fake.detach()).view(-1), fake_label)
    fabric.backward(err_d_fake)
    optimizer_d.step()

    generator.zero_grad()
    err_g = criterion(discriminator(fake).view(-1), real_label)
    fabric.backward(err_g)
    optimizer_g.step()

result = generator.module
