"""CycleGAN's shape: two discriminators under one optimizer, switched off in the generators' step; image pools."""

import itertools
import random

import torch
from torch import nn

torch.manual_seed(4)


class ImagePool:
    def __init__(self, size):
        self.size, self.images, self.random = size, [], random.Random(0)

    def query(self, images):
        returned = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image)
                returned.append(image)
            elif self.random.random() > 0.5:
                i = self.random.randrange(self.size)
                returned.append(self.images[i])
                self.images[i] = image
            else:
                returned.append(image)
        return torch.stack(returned)


class GANLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("real_label", torch.tensor(1.0))
        self.register_buffer("fake_label", torch.tensor(0.0))
        self.loss = nn.MSELoss()

    def __call__(self, prediction, target_is_real):
        target = self.real_label if target_is_real else self.fake_label
        return self.loss(prediction, target.expand_as(prediction))


def translator():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1), nn.InstanceNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 1, 3, 1, 1), nn.Tanh()
    )


def patch_discriminator():
    return nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1),
        nn.LeakyReLU(0.2, True),
        nn.Conv2d(4, 6, 3, 1, 1),
        nn.InstanceNorm2d(6),
        nn.Conv2d(6, 1, 3),
    )


class CycleGANModel:
    def __init__(self):
        self.netG_A, self.netG_B = translator(), translator()
        self.netD_A, self.netD_B = patch_discriminator(), patch_discriminator()
        self.fake_A_pool, self.fake_B_pool = ImagePool(4), ImagePool(4)
        self.criterionGAN, self.criterionCycle = GANLoss(), nn.L1Loss()
        G, D = (self.netG_A, self.netG_B), (self.netD_A, self.netD_B)
        self.optimizer_G = torch.optim.Adam(
            itertools.chain(*(net.parameters() for net in G)), lr=0.01, betas=(0.5, 0.999)
        )
        self.optimizer_D = torch.optim.Adam(
            itertools.chain(*(net.parameters() for net in D)), lr=0.01, betas=(0.5, 0.999)
        )

    def set_requires_grad(self, requires_grad):
        for net in (self.netD_A, self.netD_B):
            for param in net.parameters():
                param.requires_grad = requires_grad

    def forward(self, real_A, real_B):
        self.real_A, self.real_B = real_A, real_B
        self.fake_B, self.fake_A = self.netG_A(real_A), self.netG_B(real_B)
        self.rec_A, self.rec_B = self.netG_B(self.fake_B), self.netG_A(self.fake_A)

    def loss_D_basic(self, netD, real, fake):
        return (self.criterionGAN(netD(real), True) + self.criterionGAN(netD(fake), False)) * 0.5

    def loss_D(self, fake_A, fake_B):
        return self.loss_D_basic(self.netD_A, self.real_B, fake_B) + self.loss_D_basic(self.netD_B, self.real_A, fake_A)

    def loss_GAN(self):
        return self.criterionGAN(self.netD_A(self.fake_B), True) + self.criterionGAN(self.netD_B(self.fake_A), True)

    def optimize_parameters(self):
        self.set_requires_grad(False)
        self.optimizer_G.zero_grad()
        loss_cycle = self.criterionCycle(self.rec_A, self.real_A) + self.criterionCycle(self.rec_B, self.real_B)
        loss_G = self.loss_GAN() + 2 * loss_cycle
        loss_G.backward()
        self.optimizer_G.step()
        self.set_requires_grad(True)
        self.optimizer_D.zero_grad()
        self.loss_D(self.fake_A_pool.query(self.fake_A), self.fake_B_pool.query(self.fake_B)).backward()
        self.optimizer_D.step()


model = CycleGANModel()
for _ in range(5):
    model.forward(torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    model.optimize_parameters()

result = nn.ModuleList([model.netG_A, model.netG_B])
