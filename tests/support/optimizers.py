"""The table of optimizers: a row is a factory `params -> optimizer`, also fit as a spec.

`lr` is chosen so that three steps move D enough to part the exact gradient from the first term alone.
"""

import inspect
from functools import partial

import torch
from torch.optim import SGD, Adam, AdamW, RAdam


def tensor_lr(optimizer, lr, dtype=torch.float64, **options):
    """A learning rate that is a tensor of its own for every instance."""
    return lambda params: optimizer(params, lr=torch.tensor(lr, dtype=dtype), **options)


DECOUPLED = "decoupled_weight_decay" in inspect.signature(Adam).parameters
adam = partial(Adam, lr=0.02, betas=(0.5, 0.9))
adamw = partial(AdamW, lr=0.02, betas=(0.5, 0.9))
sgd = partial(SGD, lr=0.3)
everything = {"amsgrad": True, "weight_decay": 0.05, "maximize": True}

OPTIMIZERS = {
    "adam": adam,
    "adam_defaults_but_lr": partial(Adam, lr=0.02),
    "adam_amsgrad": partial(adam, amsgrad=True),
    "adam_weight_decay": partial(adam, weight_decay=0.05),
    # Since torch 2.7 Adam has it too.
    **({"adam_decoupled": partial(adam, weight_decay=0.05, decoupled_weight_decay=True)} if DECOUPLED else {}),
    "adam_maximize": partial(adam, maximize=True),
    "adam_large_eps": partial(adam, eps=0.1),
    "adam_all": partial(adam, **everything),
    "adam_all_foreach": partial(adam, foreach=True, **everything),
    "adam_all_fused": partial(adam, fused=True, **everything),
    "adam_single": partial(adam, foreach=False),
    "adam_foreach": partial(adam, foreach=True),
    "adam_fused": partial(adam, fused=True),
    "adam_tensor_lr": tensor_lr(Adam, 0.02, betas=(0.5, 0.9), foreach=False),
    "adam_tensor_lr_in_float32": tensor_lr(Adam, 0.02, torch.float32, betas=(0.5, 0.9), foreach=False),
    "adam_tensor_lr_fused": tensor_lr(Adam, 0.02, torch.float32, betas=(0.5, 0.9), fused=True),
    "adamw": adamw,
    "adamw_amsgrad": partial(adamw, amsgrad=True),
    "adamw_weight_decay": partial(adamw, weight_decay=0.3),
    "adamw_maximize": partial(adamw, maximize=True),
    "adamw_all": partial(adamw, **everything),
    "adamw_foreach": partial(adamw, foreach=True),
    "adamw_fused": partial(adamw, fused=True),
    "adamw_tensor_lr": tensor_lr(AdamW, 0.02, betas=(0.5, 0.9), foreach=False),
    "radam_tensor_lr": tensor_lr(RAdam, 0.05, torch.float32, betas=(0.5, 0.9), foreach=False),
    "sgd": sgd,
    "sgd_momentum": partial(sgd, lr=0.1, momentum=0.8),
    "sgd_dampening": partial(sgd, momentum=0.8, dampening=0.4),
    "sgd_nesterov": partial(sgd, lr=0.1, momentum=0.8, nesterov=True),
    "sgd_weight_decay": partial(sgd, weight_decay=0.05),
    "sgd_maximize": partial(sgd, lr=0.1, maximize=True),
    "sgd_all": partial(sgd, lr=0.05, momentum=0.8, dampening=0.4, weight_decay=0.05, maximize=True),
    "sgd_nesterov_all": partial(sgd, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.05, maximize=True),
    "sgd_foreach": partial(sgd, momentum=0.8, lr=0.1, foreach=True),
    "sgd_fused": partial(sgd, momentum=0.8, lr=0.1, fused=True),
    "sgd_tensor_lr": tensor_lr(SGD, 0.3),
}
