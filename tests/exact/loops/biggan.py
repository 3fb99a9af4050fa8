"""BigGAN's shape: G and D in one module under a switch for gradients, accumulation, the optimizer kept on the net."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(5)
n_classes, dim_z, batch_size, accumulations = 3, 4, 6, 2


def power_iteration(W, u):
    with torch.no_grad():
        v = F.normalize(u @ W)
        return F.normalize(v @ W.t()), v


class SNLinear(nn.Linear):
    def __init__(self, *shape):
        super().__init__(*shape)
        self.register_buffer("u", torch.randn(1, shape[1]))
        self.register_buffer("sv", torch.ones(1))

    def forward(self, x):
        W = self.weight
        u, v = power_iteration(W, self.u)
        sigma = torch.squeeze(u @ W @ v.t())
        if self.training:
            with torch.no_grad():
                self.u[:], self.sv[:] = u, sigma
        return F.linear(x, W / sigma, self.bias)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(n_classes, 2)
        self.net = nn.Sequential(nn.Linear(dim_z + 2, 8), nn.BatchNorm1d(8), nn.ReLU(True), nn.Linear(8, 8), nn.Tanh())
        self.optim = torch.optim.Adam(self.parameters(), lr=0.01, betas=(0.0, 0.999), eps=1e-6)

    def forward(self, z, embedded):
        return self.net(torch.cat([z, embedded], 1))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2, True), nn.Linear(8, 6), nn.Tanh())
        self.linear = SNLinear(6, 1)
        self.embed = nn.Embedding(n_classes, 6)
        self.optim = torch.optim.Adam(self.parameters(), lr=0.01, betas=(0.0, 0.999), eps=1e-6)

    def forward(self, x, y):
        h = self.body(x)
        return self.linear(h) + torch.sum(self.embed(y) * h, 1, keepdim=True)


class G_D(nn.Module):
    def __init__(self, G, D):
        super().__init__()
        self.G, self.D = G, D

    def forward(self, z, gy, x=None, dy=None, train_G=False):
        with torch.set_grad_enabled(train_G):
            G_z = self.G(z, self.G.shared(gy))
        if x is None:
            return self.D(G_z, gy)
        return self.D(torch.cat([G_z, x]), torch.cat([gy, dy])).split([len(G_z), len(x)])


def toggle_grad(model, on):
    for param in model.parameters():
        param.requires_grad = on


def discriminator_loss(dis_fake, dis_real):
    return torch.mean(F.relu(1.0 - dis_real)) + torch.mean(F.relu(1.0 + dis_fake))


def generator_loss(dis_fake):
    return -torch.mean(dis_fake)


G, D = Generator(), Discriminator()
GD = G_D(G, D)


def train(x, y):
    toggle_grad(D, True)
    toggle_grad(G, False)
    D.optim.zero_grad()
    for part in range(accumulations):
        z, gy = torch.randn(batch_size, dim_z), torch.randint(n_classes, (batch_size,))
        D_fake, D_real = GD(z, gy, x[part], y[part])
        (discriminator_loss(D_fake, D_real) / accumulations).backward()
    D.optim.step()

    toggle_grad(D, False)
    toggle_grad(G, True)
    G.optim.zero_grad()
    for _ in range(accumulations):
        z, gy = torch.randn(batch_size, dim_z), torch.randint(n_classes, (batch_size,))
        D_fake = GD(z, gy, train_G=True)
        G_loss = generator_loss(D_fake) / accumulations
        G_loss.backward()
    G.optim.step()


for _ in range(4):
    train(torch.randn(accumulations, batch_size, 8), torch.randint(n_classes, (accumulations, batch_size)))

result = G
