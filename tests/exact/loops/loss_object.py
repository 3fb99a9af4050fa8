"""A loss object that owns the discriminator: the trainer never sees D, and D computes its loss itself."""

import torch
from torch import nn
from torch.nn.functional import relu

torch.manual_seed(8)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1, self.l2 = nn.Linear(8, 10), nn.Linear(10, 1)

    def forward(self, x):
        h = self.l1(x)
        h += 0.1 * h.mean()
        return self.l2(torch.tanh(h))

    def compute_gan_loss(self, output_real, output_fake):
        return relu(1.0 - output_real).mean() + relu(1.0 + output_fake).mean()


class AdversarialLoss(nn.Module):
    def __init__(self, lr=0.02):
        super().__init__()
        self.discriminator = Discriminator()
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr, betas=(0.0, 0.9))

    def d_loss(self, real, fake):
        return self.discriminator.compute_gan_loss(self.discriminator(real), self.discriminator(fake))

    def g_loss(self, fake):
        return -self.discriminator(fake).mean()

    def forward(self, real, fake):
        self.optimizer.zero_grad()
        self.d_loss(real, fake.detach()).backward()
        self.optimizer.step()
        return self.g_loss(fake)


class Trainer:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, betas=(0.0, 0.9))
        self.reconstruction, self.adversarial = nn.L1Loss(), AdversarialLoss()

    def step(self, lr, hr):
        self.optimizer.zero_grad()
        sr = self.model(lr)
        loss = self.reconstruction(sr, hr) + 0.5 * self.adversarial(hr, sr)
        loss.backward()
        self.optimizer.step()


trainer = Trainer()
for _ in range(5):
    trainer.step(torch.randn(6, 4), torch.randn(6, 8))

result = trainer.model
