"""Problems whose D has a layer of a kind of its own: recurrent, attentive, quantised, lazy, shared with G."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from worlds import World, double, mlp_module, plain, points, problem, small_generator, softplus


@problem()
def lstm(factory):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])

    return plain(Net(), factory)


@problem(chain=True)
def plain_buffer(factory):
    """A buffer that forward writes in place and reads back: carried through the steps, then thrown away."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp_module()
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            with torch.no_grad():
                self.mean.mul_(0.7).add_(0.3 * x.mean(0))
                self.calls += 1
            return self.body(x - self.mean) / (1 + 0.01 * self.calls)

    return plain(Net(), factory)


@problem()
def gru(factory):
    """Both ways."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(1, 2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.rnn(x.unsqueeze(-1))[0].mean(1))

    return plain(Net(), factory)


class OverCoordinates(nn.Module):
    """Attention over the coordinates of a point, each embedded."""

    def __init__(self, attention, width=4):
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(1, width), attention, nn.Linear(width, 1)
        self.place = nn.Parameter(torch.randn(2, width))

    def forward(self, x):
        return self.head(self.attention(self.embed(x.unsqueeze(-1)) + self.place).mean(1))


class Fused(nn.Module):
    """The kernel that torch chooses by itself: on the CPU the fused one, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(4, 12)

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.mixed(x).unsqueeze(1).chunk(3, -1)).squeeze(1)


class ManyHeaded(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@problem()
def attention(factory):
    return plain(OverCoordinates(Fused()), factory)


@problem()
def multihead_attention(factory):
    return plain(OverCoordinates(ManyHeaded()), factory)


@problem()
def transformer(factory):
    # Not relu: where its kink lies depends on how torch initialises, and one may lie within the oracle's differences.
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, activation="gelu", batch_first=True)
    return plain(OverCoordinates(layer), factory)


class Codebook(nn.Module):
    """The nearest of a few vectors, passed straight through, and moved towards what it stands for, by no gradient."""

    def __init__(self, codes, width):
        super().__init__()
        self.register_buffer("codes", torch.randn(codes, width))
        self.register_buffer("counts", torch.ones(codes))

    def forward(self, x):
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        if self.training:
            with torch.no_grad():
                one_hot = F.one_hot(nearest, len(self.codes)).to(x.dtype)
                self.counts.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
                self.codes += 0.1 * (one_hot.t() @ x - one_hot.sum(0)[:, None] * self.codes) / self.counts[:, None]
        quantised = self.codes[nearest]
        return x + (quantised - x).detach() + 0.1 * (quantised - x).pow(2)


@problem(chain=True)
def codebook(factory):
    """A VQ layer whose codes move by exponential averages."""
    return plain(nn.Sequential(nn.Linear(2, 3), Codebook(4, 3), nn.Tanh(), nn.Linear(3, 1)), factory)


@problem()
def augmentation(factory):
    """D sees real and fake through random scales, shifts, swaps and holes, drawn anew each time."""

    def augment(x):
        scale = 1 + 0.2 * torch.randn(len(x), 1, dtype=x.dtype)
        x = x * scale + 0.1 * torch.randn_like(x)
        x = torch.where(torch.rand(len(x), 1) < 0.5, x.flip(1), x)
        return x * (torch.rand(len(x), 2) < 0.8).to(x.dtype)

    def d_loss(D, real, fake):
        return softplus(-D(augment(real))).mean() + softplus(D(augment(fake))).mean()

    def g_loss(D, real, fake):
        return softplus(-D(augment(fake))).mean()

    return plain(mlp_module(), factory, d_loss=d_loss, g_loss=g_loss)


@problem()
def lazy_materialised(factory):
    """Layers that found out their widths in a first pass."""
    D = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(1))
    D(torch.randn(3, 2))
    return plain(D, factory)


@problem()
def checkpointed(factory):
    """Half of D runs again in every backward pass, with statistics that move and masks that are drawn."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3))
            self.last = nn.Linear(6, 1)

        def forward(self, x):
            return self.last(checkpoint(self.first, x, use_reentrant=False))

    return plain(Net(), factory)


class Checkpointed(nn.Module):
    """The same net, all of whose forward pass runs again."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return checkpoint(self.inside, x, use_reentrant=False)


@problem()
def checkpointed_attention(factory):
    """The kernel is chosen again when it runs again, in the user's own backward as well."""
    return plain(Checkpointed(OverCoordinates(Fused())), factory)


@problem()
def checkpointed_weight_norm(factory):
    """So is the operator that has a right second derivative."""
    return plain(
        Checkpointed(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 1))),
        factory,
    )


def sharing(factory, owner):
    """An embedding that the generator starts from and the discriminator compares with, owned by one optimizer."""

    class Generator(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table, self.body = table, small_generator()

        def forward(self, z):
            return self.body(z + self.table.weight[: len(z)])

    class Net(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table, self.body = table, mlp_module()

        def forward(self, x):
            return self.body(x) + (x * self.table.weight[: len(x)]).sum(1, keepdim=True)

    table = double(nn.Embedding(6, 2))
    G, D = double(Generator(table)), double(Net(table))
    mine = D.parameters() if owner == "discriminator" else D.body.parameters()
    inputs = [p for p in G.parameters() if owner == "generator" or p is not table.weight]
    # Where G runs again within a loss it runs with the embedding as it has moved by then: another function.
    modes = ("argument", "closure") if owner == "discriminator" else ("argument", "closure", "rerun")
    return World(D, factory(mine), G, points(G), inputs=inputs, modes=modes)


@problem()
def shared_with_the_generator(factory):
    """The discriminator's optimizer moves what they share."""
    return sharing(factory, "discriminator")


@problem()
def shared_and_owned_by_the_generator(factory):
    """The generator's optimizer moves it: live in D, with both gradients."""
    return sharing(factory, "generator")


@problem(chain=True)
def plain_attributes(factory):
    """State that nobody registered: a tensor written in place, another assigned anew, features and a count kept."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Linear(2, 5), nn.Linear(5, 1)
            self.mean, self.size = torch.zeros(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
            self.features, self.kept, self.calls = None, [], 0

        def forward(self, x):
            with torch.no_grad():
                self.mean.mul_(0.7).add_(0.3 * x.mean(0))
                self.size = 0.9 * self.size + 0.1 * x.norm()
            self.calls += 1
            self.features = torch.tanh(self.body(x - self.mean))
            self.kept = [self.features]
            return self.last(self.features) / (self.size + 0.01 * self.calls)

    world = plain(Net(), factory)

    def forget():
        world.discriminator.features, world.discriminator.kept = None, []

    world.before_call = forget
    return world


@problem()
def initialised_by_a_flag(factory):
    """Scaled by its first batch, as a Python flag tells; the first batch comes in the unroll."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.body, self.ready = nn.Parameter(torch.ones(2)), mlp_module(), False

        def forward(self, x):
            if not self.ready:
                self.scale.data = 1 / (x.std(0) + 1e-6)
                self.ready = True
            return self.body(x * self.scale)

    world = plain(Net(), factory)
    world.before_call = lambda: setattr(world.discriminator, "ready", False)
    return world


@problem()
def written_to_in_place(factory):
    """The forward pass writes to a parameter, as nn.Embedding(max_norm=1) does; autograd has saved the others."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp_module()

        def forward(self, x):
            with torch.no_grad():
                self.body[0].bias.clamp_(-9, 9)
            return self.body(x)

    return plain(Net(), factory)
