"""A WGAN-GP script: several critic steps, a penalty at random points, then the generator on the same noise."""

import torch
from torch import nn

torch.manual_seed(2)
latent_dim, img_shape, lambda_gp, n_critic, batch_size = 4, (1, 4, 4), 10, 2, 6

generator = nn.Sequential(
    nn.Linear(latent_dim, 8), nn.BatchNorm1d(8, 0.8), nn.LeakyReLU(0.2, inplace=True), nn.Linear(8, 16), nn.Tanh()
)
discriminator = nn.Sequential(
    nn.Flatten(), nn.Linear(16, 10), nn.LeakyReLU(0.2, inplace=True), nn.Linear(10, 6), nn.Softplus(), nn.Linear(6, 1)
)
optimizer_G = torch.optim.Adam(generator.parameters(), lr=0.005, betas=(0.5, 0.9))
optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=0.005, betas=(0.5, 0.9))
dataset = torch.randn(6 * batch_size, *img_shape) * 0.3


def penalty(D, real_samples, fake_samples):
    alpha = torch.rand(real_samples.size(0), 1, 1, 1)
    interpolates = (alpha * real_samples + (1 - alpha) * fake_samples).requires_grad_(True)
    d_interpolates = D(interpolates)
    gradients = torch.autograd.grad(
        d_interpolates, interpolates, torch.ones_like(d_interpolates), create_graph=True, retain_graph=True
    )[0]
    return ((gradients.view(gradients.size(0), -1).norm(2, dim=1) - 1) ** 2).mean()


for i, real_imgs in enumerate(dataset.split(batch_size)):
    optimizer_D.zero_grad()
    z = torch.randn(batch_size, latent_dim)
    fake_imgs = generator(z).view(-1, *img_shape).detach()
    gradient_penalty = penalty(discriminator, real_imgs, fake_imgs)
    d_loss = -torch.mean(discriminator(real_imgs)) + torch.mean(discriminator(fake_imgs)) + lambda_gp * gradient_penalty
    d_loss.backward()
    optimizer_D.step()

    optimizer_G.zero_grad()
    if i % n_critic == n_critic - 1:
        fake_imgs = generator(z).view(-1, *img_shape)
        fake_validity = discriminator(fake_imgs)
        g_loss = -torch.mean(fake_validity)
        g_loss.backward()
        optimizer_G.step()

result = generator
