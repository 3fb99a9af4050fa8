"""torchgan: its Trainer, its DCGAN and its discriminator loss, with a `GeneratorLoss` of one's own."""

import os

import torch

os.environ.update(CONSOLE_LOGGING="0", TENSORBOARD_LOGGING="0", VISDOM_LOGGING="0")
from torchgan.losses import GeneratorLoss, MinimaxDiscriminatorLoss, minimax_generator_loss
from torchgan.models import DCGANDiscriminator, DCGANGenerator
from torchgan.trainer import Trainer

torch.manual_seed(5)


class AdversarialLoss(GeneratorLoss):
    def train_ops(self, generator, discriminator, optimizer_generator, real_inputs, device):
        fake = generator(torch.randn(len(real_inputs), generator.encoding_dims, device=device))
        optimizer_generator.zero_grad()
        loss = minimax_generator_loss(discriminator(fake))
        loss.backward()
        optimizer_generator.step()
        return loss.item()


adam = {"name": torch.optim.Adam, "args": {"lr": 0.01, "betas": (0.5, 0.999)}}
small = {"out_size": 16, "step_channels": 2}
network = {
    "generator": {"name": DCGANGenerator, "args": {"encoding_dims": 5, "out_channels": 1, **small}, "optimizer": adam},
    "discriminator": {
        "name": DCGANDiscriminator,
        "args": {"in_channels": 1, "in_size": 16, "step_channels": 2},
        "optimizer": adam,
    },
}
losses = [AdversarialLoss(), MinimaxDiscriminatorLoss()]
options = {"epochs": 1, "sample_size": 4, "checkpoints": "out/gan", "recon": "out"}
trainer = Trainer(network, losses, device=torch.device("cpu"), **options)
trainer.logger.logger_end_epoch.clear()  # its grid of samples asks for an option that torchvision has dropped
trainer(torch.utils.data.DataLoader(torch.rand(30, 1, 16, 16) * 2 - 1, batch_size=6))

result = trainer.generator
