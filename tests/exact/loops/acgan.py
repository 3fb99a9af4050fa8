"""An AC-GAN script: the generator's step first, labels for both, two outputs of D."""

import torch
from torch import nn

torch.manual_seed(3)
n_classes, latent_dim, batch_size = 3, 4, 6


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.label_emb = nn.Embedding(n_classes, latent_dim)
        self.model = nn.Sequential(nn.Linear(latent_dim, 8), nn.LeakyReLU(0.2), nn.Linear(8, 16), nn.Tanh())

    def forward(self, noise, labels):
        return self.model(self.label_emb(labels) * noise).view(-1, 1, 4, 4)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(0.25), nn.BatchNorm2d(4, 0.8)
        )
        self.adv_layer = nn.Sequential(nn.Linear(64, 1), nn.Sigmoid())
        self.aux_layer = nn.Linear(64, n_classes)

    def forward(self, img):
        out = self.model(img).flatten(1)
        return self.adv_layer(out), self.aux_layer(out)


adversarial_loss, auxiliary_loss = nn.BCELoss(), nn.CrossEntropyLoss()
generator, discriminator = Generator(), Discriminator()
optimizer_G = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.999))
optimizer_D = torch.optim.Adam(discriminator.parameters(), lr=0.01, betas=(0.5, 0.999))
dataset = torch.rand(5 * batch_size, 1, 4, 4) * 2 - 1
classes = torch.randint(n_classes, (5 * batch_size,))


def loss_of(output, target, labels):
    validity, predicted = output
    return (adversarial_loss(validity, target) + auxiliary_loss(predicted, labels)) / 2


for real_imgs, labels in zip(dataset.split(batch_size), classes.split(batch_size), strict=True):
    valid, fake = torch.ones(batch_size, 1), torch.zeros(batch_size, 1)

    optimizer_G.zero_grad()
    z = torch.randn(batch_size, latent_dim)
    gen_labels = torch.randint(n_classes, (batch_size,))
    gen_imgs = generator(z, gen_labels)
    g_loss = loss_of(discriminator(gen_imgs), valid, gen_labels)
    g_loss.backward()
    optimizer_G.step()

    optimizer_D.zero_grad()
    d_real_loss = loss_of(discriminator(real_imgs), valid, labels)
    d_fake_loss = loss_of(discriminator(gen_imgs.detach()), fake, gen_labels)
    d_loss = (d_real_loss + d_fake_loss) / 2
    d_loss.backward()
    optimizer_D.step()

result = generator
