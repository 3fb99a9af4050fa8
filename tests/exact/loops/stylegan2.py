"""StyleGAN2's shape: phases over a loss that calls backward itself, lazy R1, EMA of G, minibatch statistics in D."""

import copy

import torch
from torch import nn
from torch.nn.functional import softplus

torch.manual_seed(6)
z_dim, c_dim, batch_size = 4, 2, 4


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(z_dim + c_dim, 6), nn.LeakyReLU(0.2))
        self.synthesis = nn.Linear(6, 16)

    def forward(self, z, c):
        return self.synthesis(self.mapping(torch.cat([z, c], 1))).view(-1, 1, 4, 4)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mapping = nn.Conv2d(1, 3, 3, padding=1), nn.Linear(c_dim, 6)
        self.out = nn.Linear(64, 6)

    def forward(self, img, c):
        x = nn.functional.leaky_relu(self.conv(img), 0.2)
        deviation = (x.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(len(x), 1, 4, 4)
        x = self.out(torch.cat([x, deviation], 1).flatten(1))
        return (x * self.mapping(c)).sum(1, keepdim=True)


class StyleGAN2Loss:
    def __init__(self, G, D, r1_gamma=1.0):
        self.G, self.D, self.r1_gamma = G, D, r1_gamma

    def run_G(self, z, c):
        return self.G(z, c)

    def run_D(self, img, c):
        return self.D(img, c)

    def accumulate_gradients(self, phase, images, real_c, gen_z, gen_c, gain):
        if phase == "Gmain":
            gen_img = self.run_G(gen_z, gen_c)
            gen_logits = self.run_D(gen_img, gen_c)
            loss_Gmain = softplus(-gen_logits)
            loss_Gmain.mean().mul(gain).backward()
        if phase == "Dmain":
            gen_img = self.run_G(gen_z, gen_c)
            loss_Dgen = softplus(self.run_D(gen_img, gen_c))
            loss_Dgen.mean().mul(gain).backward()
        if phase in ("Dmain", "Dreg"):
            images_tmp = images.detach().requires_grad_(phase == "Dreg")
            real_logits = self.run_D(images_tmp, real_c)
            loss = softplus(-real_logits) if phase == "Dmain" else 0
            if phase == "Dreg":
                r1_grads = torch.autograd.grad(real_logits.sum(), images_tmp, create_graph=True)[0]
                loss = r1_grads.square().sum([1, 2, 3]) * (self.r1_gamma / 2) + real_logits[:, 0] * 0
            loss.mean().mul(gain).backward()


G, D = Generator().requires_grad_(False), Discriminator().requires_grad_(False)
G_ema = copy.deepcopy(G).eval()
opt_G = torch.optim.Adam(G.parameters(), lr=0.01, betas=(0.0, 0.99), eps=1e-8)
opt_D = torch.optim.Adam(D.parameters(), lr=0.01, betas=(0.0, 0.99), eps=1e-8)
phases = [("Gmain", G, opt_G, 1), ("Dmain", D, opt_D, 1), ("Dreg", D, opt_D, 2)]
loss = StyleGAN2Loss(G, D)

for batch_idx in range(5):
    images, real_c = torch.randn(batch_size, 1, 4, 4), torch.eye(c_dim)[torch.randint(c_dim, (batch_size,))]
    for name, module, opt, interval in phases:
        if batch_idx % interval:
            continue
        gen_z, gen_c = torch.randn(batch_size, z_dim), torch.eye(c_dim)[torch.randint(c_dim, (batch_size,))]
        opt.zero_grad(set_to_none=True)
        module.requires_grad_(True)
        loss.accumulate_gradients(name, images, real_c, gen_z, gen_c, gain=interval)
        module.requires_grad_(False)
        for param in module.parameters():
            if param.grad is not None:
                torch.nan_to_num(param.grad, nan=0, posinf=1e5, neginf=-1e5, out=param.grad)
        opt.step()
    with torch.no_grad():
        for p_ema, p in zip(G_ema.parameters(), G.parameters(), strict=True):
            p_ema.copy_(p.lerp(p_ema, 0.9))

result = nn.ModuleList([G, G_ema])
