"""A flat script: labels in one reused buffer, a backward for the real half and one for the fake."""

import torch
from torch import nn

torch.manual_seed(1)
batch_size, nz, real_label, fake_label = 6, 5, 1.0, 0.0

netG = nn.Sequential(
    nn.ConvTranspose2d(nz, 6, 4, 1, 0, bias=False),
    nn.BatchNorm2d(6),
    nn.ReLU(True),
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
)
criterion = nn.BCELoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=0.01, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=0.01, betas=(0.5, 0.999))
dataset = torch.rand(5 * batch_size, 1, 8, 8) * 2 - 1

label = torch.full((batch_size,), real_label)
for images in dataset.split(batch_size):
    netD.zero_grad()
    label.fill_(real_label)
    output = netD(images).view(-1)
    errD_real = criterion(output, label)
    errD_real.backward()

    fake = netG(torch.randn(batch_size, nz, 1, 1))
    label.fill_(fake_label)
    output = netD(fake.detach()).view(-1)
    errD_fake = criterion(output, label)
    errD_fake.backward()
    optimizerD.step()

    netG.zero_grad()
    label.fill_(real_label)
    output = netD(fake).view(-1)
    errG = criterion(output, label)
    errG.backward()
    optimizerG.step()

result = netG
