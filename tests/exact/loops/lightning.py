"""Lightning with manual optimization, the real package: optimizers that are wrapped, and toggled for each step."""

import logging
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

torch.manual_seed(7)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class GAN(LightningModule):
    def __init__(self, latent_dim=4):
        super().__init__()
        self.latent_dim = latent_dim
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(latent_dim, 8), nn.BatchNorm1d(8, 0.8), nn.LeakyReLU(0.2), nn.Linear(8, 16)
        )
        self.discriminator = nn.Sequential(
            nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1)
        )

    def adversarial_loss(self, y_hat, y):
        return binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch):
        (imgs,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(len(imgs), self.latent_dim).type_as(imgs)
        valid = torch.ones(len(imgs), 1).type_as(imgs)

        self.toggle_optimizer(optimizer_g)
        g_loss = self.adversarial_loss(self.discriminator(self.generator(z)), valid)
        optimizer_g.zero_grad()
        self.manual_backward(g_loss)
        optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(imgs), valid)
        fake = torch.zeros(len(imgs), 1).type_as(imgs)
        fake_loss = self.adversarial_loss(self.discriminator(self.generator(z).detach()), fake)
        d_loss = (real_loss + fake_loss) / 2
        optimizer_d.zero_grad()
        self.manual_backward(d_loss)
        optimizer_d.step()
        self.untoggle_optimizer(optimizer_d)

    def configure_optimizers(self):
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=0.01, betas=(0.5, 0.999))
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=0.01, betas=(0.5, 0.999))
        return opt_g, opt_d


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(30, 16)), batch_size=6)
model = GAN()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # on workers and on what else a small run lacks
    Trainer(accelerator="cpu", devices=1, max_epochs=1, **quiet).fit(model, data)

result = model.generator
