"""The optimizers of torch_optimizer, with learning rates that let two steps show, and what becomes of each."""

from functools import partial

import torch
import torch_optimizer as extra

RULE, TRACED, REFUSED = "exact rule", "traced", "refused"

# Learning rates that let two steps show.
FACTORIES = {
    "A2GradExp": partial(extra.A2GradExp, beta=0.1, lips=2.0),
    "A2GradInc": partial(extra.A2GradInc, beta=0.1, lips=2.0),
    "A2GradUni": partial(extra.A2GradUni, beta=0.1, lips=2.0),
    "AccSGD": partial(extra.AccSGD, lr=0.1),
    "AdaBelief": partial(extra.AdaBelief, lr=0.01),
    "AdaBound": partial(extra.AdaBound, lr=0.01),
    "AdaMod": partial(extra.AdaMod, lr=0.01),
    "Adafactor": partial(extra.Adafactor),
    "Adahessian": partial(extra.Adahessian),
    "AdamP": partial(extra.AdamP, lr=0.01, weight_decay=0.01),
    "AggMo": partial(extra.AggMo, lr=0.05),
    "Apollo": partial(extra.Apollo, lr=0.01),
    "DiffGrad": partial(extra.DiffGrad, lr=0.01),
    "LARS": partial(extra.LARS, lr=1.0, momentum=0.5, weight_decay=0.01),
    "Lamb": partial(extra.Lamb, lr=0.01),
    "MADGRAD": partial(extra.MADGRAD, lr=0.05),
    "NovoGrad": partial(extra.NovoGrad, lr=0.01),
    "PID": partial(extra.PID, lr=0.05, momentum=0.5),
    "QHAdam": partial(extra.QHAdam, lr=0.01, nus=(0.7, 0.9)),
    "QHM": partial(extra.QHM, lr=0.1, momentum=0.5),
    "RAdam": partial(extra.RAdam, lr=0.01),
    "Ranger": partial(extra.Ranger, lr=0.01),
    "RangerQH": partial(extra.RangerQH, lr=0.01),
    "RangerVA": partial(extra.RangerVA, lr=0.01),
    "SGDP": partial(extra.SGDP, lr=0.1, momentum=0.5, weight_decay=0.01),
    "SGDW": partial(extra.SGDW, lr=0.1, momentum=0.5, weight_decay=0.01),
    "SWATS": partial(extra.SWATS, lr=0.01),
    "Shampoo": partial(extra.Shampoo, lr=0.1, momentum=0.5),
    "Yogi": partial(extra.Yogi, lr=0.01),
    # One look back in every two steps.
    "Lookahead-SGD": lambda params: extra.Lookahead(torch.optim.SGD(params, lr=0.1, momentum=0.5), k=2),
    "Lookahead-Adam": lambda params: extra.Lookahead(torch.optim.Adam(params, lr=0.01, foreach=False), k=2),
    "Lookahead-Yogi": lambda params: extra.Lookahead(extra.Yogi(params, lr=0.01), k=2),
}
VERDICTS = dict.fromkeys(FACTORIES, TRACED) | {
    "A2GradExp": RULE,
    "A2GradInc": RULE,
    "A2GradUni": RULE,
    "Adahessian": REFUSED,
}
