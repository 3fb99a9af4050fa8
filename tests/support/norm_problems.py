"""Problems whose D normalises: over the batch, over a sample, or its own weights."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F
from worlds import World, double, images, plain, problem, softplus


def conv_module():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(32, 1)
    )


def convolutional(factory, **changes):
    G, D = double(nn.Sequential(nn.Linear(2, 16), nn.Tanh())), double(conv_module())
    return World(D, factory(D.parameters()), G, images(G), **changes)


def joint_d(D, real, fake):
    on_real, on_fake = D(torch.cat([real, fake])).chunk(2)
    return softplus(-on_real).mean() + softplus(on_fake).mean()


def joint_g(D, real, fake):
    return softplus(-D(torch.cat([real, fake])).chunk(2)[1]).mean()


@problem()
def batchnorm_two_batches(factory):
    """D(real) and D(fake) normalised apart; running statistics move twice a step."""
    return convolutional(factory)


@problem()
def batchnorm_one_batch(factory):
    """D(cat(real, fake)): the generator moves the statistics of the real half."""

    return convolutional(factory, d_loss=joint_d, g_loss=joint_g)


@problem(chain=True)
def batchnorm_read_in_eval(factory):
    """g_loss reads the running statistics, so they have to be carried through the steps."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(32, 1)

        def forward(self, x, reading=False):
            norm, h = self.norm, self.conv(x)
            if reading:
                h = F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            else:
                h = norm(h)
            return self.head(softplus(h).flatten(1))

    G, D = double(nn.Sequential(nn.Linear(2, 16), nn.Tanh())), double(Net())
    return World(D, factory(D.parameters()), G, images(G), g_loss=lambda D, real, fake: softplus(-D(fake, True)).mean())


def normed(old, new):
    """The same net under a legacy hook or a parametrization, each made where its deprecation is expected."""

    def module(legacy):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            norm = old if legacy else new
            return nn.Sequential(norm(nn.Linear(2, 5)), nn.Tanh(), norm(nn.Linear(5, 1)))

    return module


spectral_module = normed(nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm)
weight_module = normed(nn.utils.weight_norm, nn.utils.parametrizations.weight_norm)


@problem(chain=True)
def spectral_norm_legacy(factory):
    return plain(spectral_module(True), factory)


@problem(chain=True)
def spectral_norm_new(factory):
    return plain(spectral_module(False), factory)


@problem()
def weight_norm_legacy(factory):
    return plain(weight_module(True), factory)


@problem()
def weight_norm_new(factory):
    return plain(weight_module(False), factory)


def over_positions(norm):
    """A small net over points whose two channels of four positions are normalised."""
    return nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 4)), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8, 1))


@problem()
def instance_norm(factory):
    return plain(over_positions(nn.InstanceNorm1d(2, affine=True)), factory)


@problem(chain=True)
def instance_norm_tracking(factory):
    """Statistics tracked in training mode and read in evaluation mode, into which the generator's loss switches D."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = over_positions(nn.InstanceNorm1d(2, affine=True, track_running_stats=True))

        def forward(self, x, reading=False):
            self.train(not reading)
            out = self.body(x)
            self.train()
            return out

    return plain(Net(), factory, g_loss=lambda D, real, fake: softplus(-D(fake, True)).mean())


@problem()
def group_norm(factory):
    return plain(over_positions(nn.GroupNorm(2, 2)), factory)


@problem()
def layer_norm(factory):
    return plain(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)), factory)


class ActNorm(nn.Module):
    """Shift and scale by parameters that the first batch decides on, written as Glow's descendants do."""

    def __init__(self, width):
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.ones(width))
        self.register_buffer("ready", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x):
        if self.training and self.ready.item() == 0:
            with torch.no_grad():
                self.shift.data.copy_(-x.mean(0))
                self.scale.copy_(1 / (x.std(0) + 1e-6))
            self.ready.fill_(1)
        return self.scale * (x + self.shift)


def actnorm_module():
    return nn.Sequential(nn.Linear(2, 5), ActNorm(5), nn.Tanh(), nn.Linear(5, 1))


@problem()
def actnorm(factory):
    return plain(actnorm_module(), factory)


@problem()
def actnorm_decided_in_the_unroll(factory):
    """Its first batch comes in the inner step, on real data: D is initialised there, and not in earnest."""
    world = plain(actnorm_module(), factory)
    world.before_call = lambda: world.discriminator[1].ready.fill_(0)
    return world


@problem()
def minibatch_stddev(factory):
    """The spread over the batch as a further feature, as in ProGAN and its descendants."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 5), nn.Linear(6, 1)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(len(h), 1)
            return self.last(torch.cat([h, spread], 1))

    return plain(Net(), factory)


class InPlaceSpectral(nn.Module):
    """A power iteration that writes its buffers in place, in the shape of BigGAN's layers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))
        self.register_buffer("u", torch.randn(1, outputs))
        self.register_buffer("largest", torch.ones(1))

    def forward(self, x):
        with torch.no_grad():
            v = F.normalize(self.u @ self.weight, dim=1)
            self.u[:] = F.normalize(v @ self.weight.t(), dim=1)
        size = (v @ self.weight.t() @ self.u.clone().t()).squeeze()
        with torch.no_grad():
            self.largest[:] = size
        return F.linear(x, self.weight / size, self.bias)


class RewrittenSpectral(nn.Module):
    """u and v as parameters that nothing trains, rewritten through `.data`, in the shape of SAGAN's descendants."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))
        self.u = nn.Parameter(F.normalize(torch.randn(outputs), dim=0), requires_grad=False)
        self.v = nn.Parameter(F.normalize(torch.randn(inputs), dim=0), requires_grad=False)

    def forward(self, x):
        self.v.data = F.normalize(self.weight.data.t() @ self.u.data, dim=0)
        self.u.data = F.normalize(self.weight.data @ self.v.data, dim=0)
        return F.linear(x, self.weight / (self.u @ self.weight @ self.v), self.bias)


def hand_made_spectral(layer, factory, **losses):
    D = nn.Sequential(layer(2, 5), nn.Tanh(), layer(5, 1))
    trained = [p for p in D.parameters() if p.requires_grad]
    return plain(D, lambda _: factory(trained), **losses)


@problem(chain=True)
def spectral_norm_in_place(factory):
    return hand_made_spectral(InPlaceSpectral, factory)


@problem(chain=True)
def spectral_norm_rewritten(factory):
    """In one pass: a second one changes what the first has saved, in the user's own training as well."""
    return hand_made_spectral(RewrittenSpectral, factory, d_loss=joint_d, g_loss=joint_g)
