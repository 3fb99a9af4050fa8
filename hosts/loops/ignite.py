"""Ignite, in the shape of its own DCGAN example: both players' steps in one process function."""

import torch
from ignite.engine import Engine
from torch import nn

torch.manual_seed(2)
batch_size, z_dim = 6, 5

netG = nn.Sequential(
    nn.ConvTranspose2d(z_dim, 6, 4, 1, 0, bias=False),
    nn.BatchNorm2d(6),
    nn.ReLU(inplace=True),
    nn.ConvTranspose2d(6, 1, 4, 2, 1, bias=False),
    nn.Tanh(),
)
netD = nn.Sequential(
    nn.Conv2d(1, 4, 4, 2, 1, bias=False),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(4, 6, 3, 1, 1, bias=False),
    nn.BatchNorm2d(6),
    nn.LeakyReLU(0.2, inplace=True),
    nn.Conv2d(6, 1, 4, 1, 0, bias=False),
    nn.Sigmoid(),
    nn.Flatten(0),
)
bce = nn.BCELoss()
optimizerG = torch.optim.Adam(netG.parameters(), lr=0.01, betas=(0.5, 0.999))
optimizerD = torch.optim.Adam(netD.parameters(), lr=0.01, betas=(0.5, 0.999))
real_labels, fake_labels = torch.ones(batch_size), torch.zeros(batch_size)


def step(engine, real):
    # (1) D: maximize log(D(x)) + log(1 - D(G(z)))
    netD.zero_grad()
    output = netD(real)
    errD_real = bce(output, real_labels)
    errD_real.backward()
    fake = netG(torch.randn(batch_size, z_dim, 1, 1))
    output = netD(fake.detach())
    errD_fake = bce(output, fake_labels)
    errD_fake.backward()
    optimizerD.step()

    # (2) G: maximize log(D(G(z)))
    netG.zero_grad()
    output = netD(fake)
    errG = bce(output, real_labels)
    errG.backward()
    optimizerG.step()
    return {"errD": (errD_real + errD_fake).item(), "errG": errG.item()}


trainer = Engine(step)
trainer.run((torch.rand(5 * batch_size, 1, 8, 8) * 2 - 1).split(batch_size), max_epochs=1)

result = netG
