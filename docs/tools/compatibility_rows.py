"""What a discriminator, a process or a loop may contain, what becomes of it, and the tests that show it.

A row is one hazard. To add one, write a test (or a row in `problems.py`) and name it here;
`compatibility_table.py --write` puts it into docs/compatibility.md.
"""

from typing import NamedTuple

EXACT, REFUSED, KNOWN = "exact", "refused", "known limit"


class Row(NamedTuple):
    """What somebody has, and what becomes of it.

    `tests` are names of problems, or functions in a test file, `test_file.py::test_name`; `how` says what is done about
    it, or what to do.
    """

    what: str
    verdict: str
    how: str
    tests: tuple[str, ...]


MODULES = [
    Row(
        "BatchNorm: real and fake apart or in one batch; statistics read in evaluation mode",
        EXACT,
        "Statistics are carried through the K steps and thrown away. A plain generator step moves D's statistics; an "
        "unrolled one does not.",
        (
            "batchnorm_two_batches",
            "batchnorm_one_batch",
            "batchnorm_read_in_eval",
            "test_measured.py::test_batchnorm_statistics_do_not_move_and_are_carried",
        ),
    ),
    Row("InstanceNorm, with tracked statistics or without", EXACT, "", ("instance_norm", "instance_norm_tracking")),
    Row("GroupNorm, LayerNorm", EXACT, "", ("group_norm", "layer_norm")),
    Row(
        "ActNorm and other layers that initialise themselves from their first batch, noted in a buffer or a flag",
        EXACT,
        "If that batch comes inside an unroll, they are initialised for its length, and again by the first real batch.",
        ("actnorm", "actnorm_decided_in_the_unroll", "initialised_by_a_flag"),
    ),
    Row("Minibatch standard deviation", EXACT, "", ("minibatch_stddev",)),
    Row(
        "Norms, distances, standard deviations at 0: minibatch discrimination, dead features, a critic without slope",
        EXACT,
        "Real steps go by torch's subgradient 0, whose own derivative in torch is NaN; here it stays 0. `torch.cdist`, "
        "which has no second derivative in torch, has one here.",
        (
            "test_zero_distances.py::test_a_distance_of_zero_in_d",
            "test_zero_distances.py::test_a_penalty_on_a_critic_without_slope",
        ),
    ),
    Row(
        "Another second derivative that is NaN where the first is finite (`torch.sinc` at 0)",
        REFUSED,
        "The step and the operator are named.",
        (
            "test_zero_distances.py::test_a_nan_that_nothing_repairs_is_told",
            "test_zero_distances.py::test_without_the_repair_no_nan_is_returned",
        ),
    ),
    Row("VQ codebooks that move by averages", EXACT, "The codes are carried like statistics.", ("codebook",)),
    Row(
        "Spectral norm: hook, parametrization, buffers written in place, parameters rewritten through `.data`",
        EXACT,
        "u and v are carried; each evaluation gets copies, so that no step changes what another has saved. The power "
        "iteration is torch's own `no_grad`, and is not differentiated.",
        ("spectral_norm_legacy", "spectral_norm_new", "spectral_norm_in_place", "spectral_norm_rewritten"),
    ),
    Row(
        "Weight norm: hook and parametrization",
        EXACT,
        "Torch's fused operator has a wrong second derivative on the CPU; its node in the graph is given a right one.",
        ("weight_norm_legacy", "weight_norm_new"),
    ),
    Row(
        "`parametrize.cached()` around the call",
        EXACT,
        "The cache is off inside.",
        ("test_settings.py::test_cached_parametrizations_are_not_those_of_another_step",),
    ),
    Row(
        "Buffers, registered or plain attributes; features, lists of them, flags and counts kept on a module",
        EXACT,
        "They are put back after the call, and so are dicts, sets and lists on D. What a loss changes outside of D "
        "stays changed: guard that with `is_unrolling()`.",
        ("plain_buffer", "plain_attributes", "test_untouched.py::test_a_call_touches_nothing"),
    ),
    Row(
        "LSTM, GRU",
        EXACT,
        "cuDNN, whose RNNs have no second derivative, is off for the call if D has one (tested on the CPU, by the flag "
        "alone).",
        ("lstm", "gru", "test_settings.py::test_cudnn_is_left_where_there_is_an_rnn"),
    ),
    Row(
        "Attention: `scaled_dot_product_attention`, `MultiheadAttention`, `TransformerEncoderLayer`",
        EXACT,
        "The math kernel is chosen for the call, whatever the global setting, and that is put back. A D that insists "
        "on a fused kernel is an error: `FiniteDifference()` or `stop_gradient=True`.",
        (
            "attention",
            "multihead_attention",
            "transformer",
            "test_settings.py::test_attention_by_the_math_kernel_whatever_the_user_chose",
            "test_settings.py::test_the_fused_kernel_has_no_second_derivative",
        ),
    ),
    Row(
        "Dropout; random augmentation before D",
        EXACT,
        "Numbers are drawn from the global generators in your order; a replayed step draws the same. Under "
        "`torch.random.fork_rng()` a call leaves their stream where it was.",
        (
            "dropout",
            "augmentation",
            "test_measured.py::test_dropout_draws_other_masks_per_step_and_is_differentiated_with_them",
            "test_random.py::test_the_stream_after_a_call_is_that_after_its_loss_evaluations",
            "test_random.py::test_a_fork_leaves_the_stream_alone",
        ),
    ),
    Row("In-place activations and arithmetic", EXACT, "", ("leaky_in_place",)),
    Row(
        "Dead units, saturated losses, a bias before BatchNorm (v = 0 in Adam)",
        EXACT,
        "The square root has derivative 0 there.",
        ("dead_relu", "test_measured.py::test_a_dead_relu_stays_finite_and_exact"),
    ),
    Row("Lazy modules after a first batch", EXACT, "", ("lazy_materialised",)),
    Row(
        "Lazy modules before it",
        REFUSED,
        "Run D once on a batch.",
        ("test_settings.py::test_a_lazy_discriminator_before_its_first_batch",),
    ),
    Row("Tied weights", EXACT, "", ("tied",)),
    Row(
        "Two parameters, or a parameter and a buffer, in one piece of memory (`b.weight.data = a.weight.data`)",
        REFUSED,
        "Share the parameter itself: `b.weight = a.weight`.",
        ("test_bad_input.py::test_two_tensors_in_the_same_memory",),
    ),
    Row(
        "A parameter with attributes, read in `forward`, in a loss or in `step()`",
        EXACT,
        "Proven by the first call.",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "A parameter of a class of its own (`isinstance`, `__torch_function__`), or looked up by its identity",
        EXACT,
        "Proven by the first call.",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "A parameter whose class has a `__torch_dispatch__` (quantised, sharded)",
        REFUSED,
        "In an unroll a parameter holds a plain tensor, which such a class cannot.",
        ("test_live_discriminators.py::test_a_tensor_subclass_with_a_memory_of_its_own",),
    ),
    Row(
        "Objects of the user's own on D: running statistics, counts, slots, nested containers, stateful forward hooks",
        EXACT,
        "Put back after the call.",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "A tensor of D in the memory of a parameter, at whatever offset, also if the sharing began later",
        REFUSED,
        "Give it a copy.",
        ("test_live_discriminators.py::test_refused",),
    ),
    Row(
        "Buffers that are views of one another",
        REFUSED,
        "Refused where a loss writes to one of them; give each a copy.",
        ("test_live_discriminators.py::test_refused",),
    ),
    Row(
        "A buffer that carries the generator's graph",
        EXACT,
        "",
        ("test_live_discriminators.py::test_a_buffer_that_carries_the_generators_graph",),
    ),
    Row(
        "A large frozen part of D",
        EXACT,
        "Copied once for a call, not for every evaluation.",
        ("test_live_discriminators.py::test_a_large_frozen_part_is_copied_once_and_put_back",),
    ),
    Row(
        "What D's class, a `threading.local` or a `WeakKeyDictionary` holds; parameters with strides of their own; "
        "caches outside of D that go by a parameter's version",
        EXACT,
        "What D's class and these objects hold is put back.",
        ("test_what_is_shared.py::test_exact_in_every_call",),
    ),
    Row(
        "A layer that the forward pass builds or appends",
        EXACT,
        "Gone after the call.",
        ("test_losses_and_parameters.py::test_a_layer_that_a_loss_builds_is_gone_after_the_call",),
    ),
    Row(
        "A forward pass that writes to a parameter (`nn.Embedding(max_norm=1)`)",
        EXACT,
        "The write is torch's own `no_grad`, and is not differentiated.",
        ("written_to_in_place",),
    ),
    Row(
        "`nn.Embedding(sparse=True)`",
        REFUSED,
        "A sparse gradient has no second derivative.",
        ("test_bad_input.py::test_sparse_gradients",),
    ),
    Row(
        "A head that another optimizer owns (InfoGAN); heads without a gradient",
        EXACT,
        "It stays live, and its gradient reaches it. Without a gradient a parameter is skipped, as torch does.",
        ("head_of_another_optimizer", "unused_head", "sometimes_used_head"),
    ),
    Row(
        "Parameters frozen from the start (freezeD)",
        EXACT,
        "What did not require grad at construction, while others did, does not move until it is seen to.",
        ("frozen_from_the_start",),
    ),
    Row(
        "A module that G and D share",
        EXACT,
        "If D's optimizer owns it and the losses run G again, G runs with what D's steps have made of it.",
        ("shared_with_the_generator", "shared_and_owned_by_the_generator"),
    ),
    Row(
        "Several discriminators, in a list, tuple or dict; one optimizer or several; different dtypes",
        EXACT,
        "Different devices go the same way, and are not tested.",
        (
            "two_discriminators_one_optimizer",
            "two_discriminators_two_optimizers",
            "dict_of_discriminators",
            "test_settings.py::test_discriminators_of_different_dtypes",
        ),
    ),
    Row(
        "Scripted and traced modules (`torch.jit`)",
        REFUSED,
        "Pass the module that it was made from.",
        ("test_bad_input.py::test_a_scripted_discriminator",),
    ),
]

LOSSES = [
    Row(
        "A fake that arrives detached, as `.data`, or made under `no_grad`",
        REFUSED,
        "Pass it with its graph.",
        ("test_bad_input.py::test_a_fake_without_gradient",),
    ),
    Row(
        "A D loss that detaches the fake itself, reused whole",
        EXACT,
        "With `unroll_wrap.detach(fake)` or `unroll_wrap.no_grad()` in the place of torch's: outside an unroll they "
        "are the same. Otherwise a warning: only the first term is there.",
        (
            "test_guards.py::test_inside_they_let_the_gradient_through",
            "test_guards.py::test_outside_they_are_torchs_own",
            "test_options.py::test_resampled_batches_with_fresh_noise",
        ),
    ),
    Row(
        "Feature matching, with the real side detached or not",
        EXACT,
        "A `detach` that is meant is honoured: that path is cut. `verify` names it.",
        (
            "test_guards.py::test_torchs_own_detach_is_honoured",
            "test_verify.py::test_a_users_own_cut_is_told_from_an_error",
        ),
    ),
    Row(
        "Conditional D, labels by position or keyword",
        EXACT,
        "",
        ("conditional", "test_options.py::test_keyword_arguments_reach_both_losses"),
    ),
    Row(
        "D that returns a tuple, list or dict: logits at several scales, features, class scores",
        EXACT,
        "What D returns goes to your losses as it is; a loss returns one scalar.",
        ("test_loop_losses.py::test_outputs_of_d", "test_bad_input.py::test_a_loss_that_is_no_finite_scalar"),
    ),
    Row(
        "Losses that are methods of D, of a trainer or of a loss object that owns D",
        EXACT,
        "They may reach D in any way: while a loss runs, the unrolled tensors are in your own modules.",
        ("test_loop_losses.py::test_losses_that_are_methods", "test_loops.py::test_the_loop_after_is_exact"),
    ),
    Row(
        "Gradient penalties: WGAN-GP, R1, R2, DRAGAN; on fresh leaves or on a batch that is used again; through norms",
        EXACT,
        "Every inner step has leaves of its own, so a penalty does not see another step's graph. Where torch's "
        "third derivative of a norm is wrong or missing, its node is given a right one, by whatever name it was called "
        "(`torch.layer_norm`, aten, an exported module). Batches of gradients and the transforms of `torch.func` do as "
        "well as `autograd.grad`.",
        (
            "wgan_gp",
            "r1_on_reused_real",
            "test_loop_losses.py::test_penalties",
            "test_penalties.py::test_a_penalty_through_a_norm",
            "test_penalties.py::test_a_penalty_by_the_transforms_of_torch_func",
            "test_penalties.py::test_a_penalty_through_a_norm_by_another_name",
            "test_penalties.py::test_a_batch_of_gradients_in_a_penalty",
            "test_penalties.py::test_forward_mode_and_second_derivatives_in_a_penalty",
            "test_result.py::test_the_same_tensor_twice_is_one_tensor",
        ),
    ),
    Row(
        "Forward mode (`torch.func.jvp`, `jacfwd`, `hessian`, `forward_ad`) or a derivative of a derivative in a loss, "
        "through LayerNorm, BatchNorm in training mode or InstanceNorm",
        REFUSED,
        "Torch's gradient of that is wrong, silently, in real steps too. Take first derivatives in reverse mode, or "
        "use GroupNorm.",
        (
            "test_penalties.py::test_what_torch_has_wrong_in_real_steps_is_refused",
            "test_penalties.py::test_torchs_gradient_is_wrong_there",
        ),
    ),
    Row(
        "Hooks on the tensors and nodes of a loss's graph, backward hooks on D's modules",
        EXACT,
        "They fire in the backward pass of each inner step, as in a real one, and not in the one that differentiates "
        "it. `FiniteDifference` refuses those that change gradients. What they change is no derivative, so `verify` "
        "cannot confirm it. `register_multi_grad_hook` on D's parameters hears of real steps alone.",
        (
            "test_hooks.py::test_hooks_that_change_gradients",
            "test_hooks.py::test_hooks_that_look_on",
            "test_hooks.py::test_hooks_on_modules_from_before_the_call",
            "test_hooks.py::test_hooks_of_several_parameters_look_on",
            "test_hooks.py::test_differences_with_hooks_that_change_gradients_are_refused",
        ),
    ),
    Row(
        "A loss that calls `backward()` itself",
        REFUSED,
        "What that adds to `.grad` would be missing. Return the sum of the terms.",
        ("test_bad_input.py::test_a_loss_that_calls_backward",),
    ),
    Row(
        "Batches as dicts, named tuples, dataclasses, packed sequences, containers of your own",
        EXACT,
        "In an object that is no dict, list or tuple, or cannot be written to, tensors are reached as by a closure, at "
        "the cost of a second pass per step.",
        (
            "test_result.py::test_a_batch_in_any_container",
            "test_result.py::test_a_packed_sequence",
            "test_silent_mistakes.py::test_a_batch_in_a_container_that_cannot_be_refilled",
        ),
    ),
    Row(
        "`.item()`, branches on data, numpy, Python's numbers and random numbers, prints",
        EXACT,
        "Losses run as they are, without tracing. A number that is read from a tensor is constant for the derivative; "
        "where that changes it, `verify` fails. Only what torch draws is replayed: with `Recompute` and "
        "`FiniteDifference` draw with torch.",
        (
            "sometimes_used_head",
            "test_loop_losses.py::test_numbers_of_python_and_numpy",
            "test_backwards.py::test_a_loss_that_cannot_be_replayed_is_an_error_with_a_remedy",
        ),
    ),
    Row(
        "Label buffers refilled in place (`label.fill_`)",
        REFUSED,
        "Make a new tensor: `torch.full_like`.",
        ("test_bad_input.py::test_a_label_buffer_that_is_refilled",),
    ),
    Row(
        "Losses with state of their own: image pools, running penalties, statistics of an adaptive augmentation",
        KNOWN,
        "Their side effects happen K + 1 times: guard them with `is_unrolling()`.",
        ("test_loop_losses.py::test_an_image_pool", "test_guards.py::test_is_unrolling_tells_the_inner_losses"),
    ),
    Row(
        "A generator that the losses run again: its own BatchNorm statistics, power iterations and averages of w",
        KNOWN,
        "They move K + 1 times. Run it once, and pass the fake. `verify` and `diagnose` leave them as they were.",
        (
            "test_loop_losses.py::test_a_generator_that_runs_again_moves_its_own_statistics",
            "test_verify.py::test_a_generator_that_the_losses_run_stays_where_it_was",
        ),
    ),
    Row(
        "A parameter that is reached past its module: by a dict, a tuple, a closure, a list that the loss holds",
        EXACT,
        "",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "`d_loss` freezes layers itself (FreezeD)",
        EXACT,
        "It must freeze the same layers in every inner step.",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "A loss, or `resample=`, that writes to parameters: weights clipped, decayed or normalised in place",
        REFUSED,
        "No derivative passes through that: use `param_transform=`. Only the first run of a loss in a call may write, "
        "because no step has moved the parameters yet: a layer may initialise itself there.",
        (
            "test_losses_and_parameters.py::test_a_loss_that_writes_to_parameters_is_refused",
            "test_losses_and_parameters.py::test_the_first_run_of_a_call_may_write",
            "test_later_calls.py::test_a_loss_that_writes_to_weights",
        ),
    ),
    Row(
        "What a loss, a transform, a hook or an option begins to do after the first call",
        REFUSED,
        "What is refused in a first call is refused in later ones. What a loss begins to read or to detach is found "
        "after 16, 32, 64, … calls only.",
        (
            "test_later_calls.py::test_a_transform_whose_derivative_is_wrong_only_now",
            "test_later_calls.py::test_a_schedule_that_begins_with_one_step",
            "test_later_calls.py::test_a_hook_that_comes_later",
            "test_later_calls.py::test_what_a_loss_begins_to_read",
        ),
    ),
    Row(
        "A loss that asks for a gradient through the graph of its own `fake` (VQGAN's adaptive weight)",
        REFUSED,
        "Let the loss find `fake` in a closure or an attribute, or compute the weight outside of the loss.",
        ("test_verify_again.py::test_a_gradient_through_the_graph_of_a_fake_is_refused",),
    ),
    Row(
        "A loss that reads `.grad` of D's parameters",
        REFUSED,
        "Compute the gradient in the loss.",
        ("test_losses_and_parameters.py::test_a_loss_that_reads_a_gradient_is_refused",),
    ),
    Row(
        "D's own parameters or buffers in the batch or in the keyword arguments",
        EXACT,
        "In each step the losses get those of the step. `Compiled()` then runs eagerly, and says so.",
        ("test_what_is_shared.py::test_tensors_of_d_in_the_batch",),
    ),
    Row(
        "A tensor of the batch in the memory of a parameter (`p.detach()`, `p.data`)",
        REFUSED,
        "Pass the parameter itself, or a clone.",
        ("test_kept_and_changed.py::test_a_batch_in_the_memory_of_a_parameter",),
    ),
    Row(
        "A loss that changes a tensor of the batch in place, fake or real",
        REFUSED,
        "Change a copy: `real = real + noise`. The values are put back.",
        (
            "test_kept_and_changed.py::test_a_batch_that_a_loss_changes_in_place",
            "test_batches.py::test_a_fake_that_is_changed_in_place",
        ),
    ),
    Row(
        "A loss that computes with features, a fake or a loss that was kept, with its graph, from an earlier run",
        REFUSED,
        "Compute it again where it is used, or keep it detached.",
        ("test_batches.py::test_what_a_loss_keeps_with_its_graph",),
    ),
    Row(
        "A batch that losses recognise by identity or attributes, or switch to require grad for a penalty; dicts and "
        "lists that they write to",
        EXACT,
        "Flags, `.grad` and hooks are put back. A tensor that requires grad arrives as a copy with its attributes, and "
        "so does a container that holds one; writes to these copies are refused.",
        (
            "test_batches.py::test_a_batch_that_a_loss_knows_by_identity_and_attributes",
            "test_batches.py::test_a_container_that_the_losses_write_to",
            "test_batches.py::test_hooks_and_flags_of_the_batch",
        ),
    ),
    Row(
        "Complex fakes; batches in dataclasses, slots or tuples of a class of their own",
        EXACT,
        "",
        ("test_batches.py::test_a_complex_fake", "test_batches.py::test_an_object_that_resample_makes"),
    ),
    Row(
        "A hook on the graph of a loss that keeps a gradient in D",
        REFUSED,
        "Compute the gradient in the loss, or keep it detached.",
        ("test_kept_and_changed.py::test_a_hook_that_keeps_a_gradient_in_d",),
    ),
    Row(
        "A loss that asks for the class or the version of a parameter",
        EXACT,
        "",
        (
            "test_losses_and_parameters.py::test_what_a_loss_reads_is_there_in_g_loss_too",
            "test_losses_and_parameters.py::test_what_is_kept_by_the_version_of_a_parameter",
        ),
    ),
    Row(
        "A loss that uses what D returned before the call",
        EXACT,
        "It is a constant, as in the loop, and D gets no gradient from it.",
        ("test_live_discriminators.py::test_what_d_returned_before_the_call",),
    ),
]

OPTIMIZERS = [
    Row(
        "Optimizers",
        EXACT,
        "See [optimizers](optimizers.md). Schedules, loaded states and later groups are read at every call.",
        (
            "test_optimizer_docs.py::test_the_table_is_up_to_date",
            "test_read_afresh.py::test_a_schedule_is_followed",
            "test_read_afresh.py::test_a_checkpoint_loaded_in_mid_training",
            "test_read_afresh.py::test_a_wrapper_is_the_optimizer_inside",
        ),
    ),
    Row(
        "Gradient clipping, `nan_to_num` on gradients, weight clipping, gradient hooks on parameters",
        EXACT,
        "`grad_transform=`, with `clip_grad_norm` and `clip_grad_value` ready for it, and `param_transform=`; hooks "
        "run as they are.",
        (
            "test_clipping.py::test_exact_against_real_steps_with_torchs_clipping",
            "test_options.py::test_grad_transform_clips_like_clip_grad_norm",
            "test_options.py::test_param_transform_clips_weights",
            "test_options.py::test_transforms_may_write_to_what_they_are_given",
            "test_loop_losses.py::test_nan_to_num_on_gradients",
            "test_loop_losses.py::test_gradient_hooks_on_parameters",
        ),
    ),
    Row(
        "Hooks on parameters that run after accumulation",
        REFUSED,
        "Pass what they do as `grad_transform=` or `param_transform=`.",
        ("test_bad_input.py::test_a_hook_after_accumulation",),
    ),
    Row(
        "Wrappers around the optimizer, step hooks, patched or wrapped steps; what an optimizer keeps on itself",
        EXACT,
        "The live step is traced. One that computes with numbers read out of tensors is refused by name.",
        (
            "test_live_steps.py::test_it_is_exact_and_nothing_has_moved",
            "test_live_steps.py::test_it_is_refused_and_nothing_has_moved",
            "test_bad_input.py::test_an_optimizer_with_step_hooks",
        ),
    ),
    Row(
        "Gradient accumulation; several `backward()` before a step",
        EXACT,
        "`d_loss` is their sum.",
        ("test_loop_losses.py::test_gradient_accumulation", "test_loops.py::test_the_loop_after_is_exact"),
    ),
    Row(
        "Two kinds of D steps: the main loss, then a lazy penalty",
        EXACT,
        "Add the two, or let `resample=` say with the batch which kind a step is.",
        ("test_loop_losses.py::test_two_kinds_of_steps",),
    ),
    Row(
        "A gradient hook that uses its parameter, or that the loss registers",
        EXACT,
        "",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "A hook on a parameter's AccumulateGrad node",
        REFUSED,
        "Use `p.register_hook`.",
        ("test_live_discriminators.py::test_refused",),
    ),
    Row(
        "A gradient hook that keeps momentum on its parameter; a transform that keeps it, or detaches",
        REFUSED,
        "Keep state in the optimizer.",
        (
            "test_losses_and_parameters.py::test_a_gradient_hook_that_keeps_momentum_on_its_parameter_is_refused",
            "test_transforms_without_derivative.py::test_refused",
            "test_transforms_without_derivative.py::test_momentum_in_a_closure",
        ),
    ),
    Row(
        "An optimizer with a `zero_grad` of its own",
        EXACT,
        "The first call compares it with real steps, and so does each later call in which it changes more than "
        "gradients. It is refused if the steps differ.",
        (
            "test_zero_grad.py::test_one_that_clears_is_exact",
            "test_zero_grad.py::test_one_that_does_more_is_refused",
            "test_later_steps.py::test_a_zero_grad_that_does_more_than_clear",
        ),
    ),
    Row(
        "A traced step that depends on a global, a class attribute, or a number that only large gradients change",
        EXACT,
        "Each trace that is used again is compared with a live step.",
        (
            "test_later_steps.py::test_numbers_that_depend_on_gradients_only_where_these_are_large",
            "test_later_steps.py::test_what_a_step_reads_from_elsewhere_at_a_later_inner_step",
        ),
    ),
    Row(
        "An average of D swapped in for a call by `p.data = average`, and D's own memory back afterwards",
        EXACT,
        "A call writes to neither, under traced optimizers too.",
        ("test_later_steps.py::test_memory_that_the_loop_has_exchanged_and_keeps",),
    ),
    Row(
        "An optimizer that holds an iterator, a generator or an `array.array`",
        REFUSED,
        "They cannot be put back after a step. Keep a count or a list.",
        ("test_later_steps.py::test_what_cannot_be_put_back_is_refused_before_it_moves",),
    ),
    Row(
        "`zero_grad(set_to_none=False)`, and a head that `d_loss` does not reach",
        EXACT,
        "Gradients of zeros at the call mean that the loop keeps them. It is refused where the call cannot see that.",
        ("test_live_discriminators.py::test_exact",),
    ),
    Row(
        "`resample=` that calls D, `grad_transform` that reads D's parameters, transforms by a parameter's name",
        EXACT,
        "While they run, D holds θ^k.",
        ("test_live_discriminators.py::test_exact",),
    ),
]

LOOPS = [
    Row(
        "D with `requires_grad=False` in the generator's step; flags toggled inside a loss",
        EXACT,
        "What moves is what the optimizer owns. Flags are as before afterwards.",
        ("frozen_at_call", "test_untouched.py::test_a_loss_may_toggle_flags_and_run_hooks"),
    ),
    Row(
        "EMA of the generator",
        EXACT,
        "A call leaves its values alone.",
        ("test_loop_losses.py::test_exponential_averages_of_g_are_not_seen",),
    ),
    Row(
        "The result scaled, added, kept, or differentiated by an inner tensor (adaptive weights)",
        EXACT,
        "Once: differentiating it twice raises.",
        (
            "test_result.py::test_scaled_and_added_to_another_term",
            "test_result.py::test_retained_and_run_backward_twice",
            "test_result.py::test_differentiated_with_respect_to_an_inner_tensor",
            "test_result.py::test_differentiating_twice_raises",
        ),
    ),
    Row(
        "The wrapper as an attribute of a module or LightningModule",
        EXACT,
        "It is no module: `parameters()` and `state_dict()` of the owner are unchanged.",
        ("test_options.py::test_the_wrapper_is_no_module",),
    ),
    Row(
        "Exceptions and Ctrl-C in the middle",
        EXACT,
        "Everything is put back, and the next call is right.",
        (
            "test_untouched.py::test_whatever_raises_everything_is_put_back",
            "test_untouched.py::test_the_call_after_a_failed_one_is_exact",
        ),
    ),
    Row(
        "A D of which a part is frozen at the call, and has moved before",
        EXACT,
        "The steps move the frozen part too, and the warning `PartlyFrozen` says so.",
        ("test_live_discriminators.py::test_a_head_that_trains_while_the_body_is_frozen",),
    ),
    Row(
        "Ctrl-C at any line of a call",
        EXACT,
        "Everything is as it was.",
        ("test_interrupts.py::test_at_every_line",),
    ),
]

RUNTIME = [
    Row(
        "autocast in bfloat16 or float16, around the call or inside D",
        EXACT,
        "To its own rounding. Losses run as you have it, derivatives and updates outside; its cache of weights is off.",
        ("test_autocast.py::test_autocast_is_exact", "test_autocast.py::test_what_runs_under_autocast"),
    ),
    Row(
        "GradScaler",
        EXACT,
        "Scale the result as you scale any loss. With autocast around the call, a float16 graph gets a factor of its "
        "own inside, lowered where it overflows, and the gradient of a 16-bit fake is summed in float32.",
        (
            "test_autocast.py::test_float16_with_a_grad_scaler",
            "test_autocast.py::test_a_factor_that_overflows_is_lowered",
            "test_autocast.py::test_a_fake_of_16_bits_gets_its_gradient_summed_in_32",
        ),
    ),
    Row(
        "float64; default dtype and device contexts",
        EXACT,
        "What is made has the dtype and device of what it is made for.",
        ("mlp", "test_settings.py::test_default_dtype_and_device_do_not_matter"),
    ),
    Row(
        "`torch.compile(D)`, `D.compile()`, a compiled forward, loss or helper",
        EXACT,
        "Runs eagerly inside, since compiled code has no second derivative: one notice at INFO level, nothing compiled "
        "again. `FiniteDifference()` runs the compiled code.",
        (
            "test_compiled_discriminator.py::test_a_compiled_discriminator_is_exact",
            "test_compiled_discriminator.py::test_a_compiled_function_inside_the_forward_pass",
            "test_compiled_discriminator.py::test_finite_differences_use_the_compiled_code",
        ),
    ),
    Row(
        "`torch.compile` around the training step that makes the call",
        EXACT,
        "What is around the call is compiled, and the call is not.",
        ("test_compiled_discriminator.py::test_a_compiled_training_step",),
    ),
    Row(
        "`torch.utils.checkpoint(use_reentrant=False)` inside D",
        EXACT,
        "What runs again does so with the tensors of its step, in your own `backward()` too.",
        (
            "checkpointed",
            "checkpointed_attention",
            "checkpointed_weight_norm",
            "test_checkpoint.py::test_what_runs_again_in_the_users_backward_moves_nothing",
            "test_checkpoint.py::test_without_this_it_is_silently_wrong",
        ),
    ),
    Row(
        "`torch.utils.checkpoint(use_reentrant=True)`",
        REFUSED,
        "Pass `use_reentrant=False`.",
        ("test_checkpoint.py::test_reentrant_checkpoints_are_refused",),
    ),
    Row(
        "Selective checkpoints (`context_fn=`)",
        REFUSED,
        "Torch differentiates them once only. `FiniteDifference()` and `stop_gradient=True` work.",
        ("test_silent_mistakes.py::test_a_selective_checkpoint",),
    ),
    Row(
        "DataParallel",
        EXACT,
        "Wrapped or through `.module`. An unroll uses the first of several devices only. BatchNorm is refused there, "
        "because its statistics would be those of each device's part of the batch. This was never run on several GPUs.",
        (
            "test_options.py::test_data_parallel_on_the_cpu",
            "test_options.py::test_data_parallel_on_two_devices",
            "test_options.py::test_statistics_of_each_devices_part",
        ),
    ),
    Row(
        "DistributedDataParallel in one process",
        EXACT,
        "Inside, calls go straight to the module: its reducer waits for nothing.",
        (
            "test_parallel.py::test_distributed_data_parallel",
            "test_parallel.py::test_real_steps_between_calls",
        ),
    ),
    Row(
        "Several processes: DDP, Fabric, Accelerate; a sharded generator",
        EXACT,
        "Each looks ahead alone, or `average_gradients=` unrolls what one process would on their joined batch: see "
        "[more than one process](distributed.md).",
        ("test_distributed.py::test_every_case_on_every_rank",),
    ),
    Row(
        "A sharded discriminator (FSDP, DTensors); SyncBatchNorm in it",
        REFUSED,
        "Use DDP for D, which is seldom too large for one device, and BatchNorm.",
        ("test_distributed.py::test_every_case_on_every_rank",),
    ),
    Row(
        "`torch.no_grad()` around the call",
        EXACT,
        "The value, without graph.",
        ("test_settings.py::test_no_grad_gives_the_plain_value", "test_result.py::test_under_no_grad_the_value_alone"),
    ),
    Row(
        "`torch.inference_mode()`",
        REFUSED,
        "Use `torch.no_grad()`. Clone a batch that was made there.",
        (
            "test_settings.py::test_inference_mode_is_refused",
            "test_settings.py::test_a_batch_made_in_inference_mode",
        ),
    ),
    Row(
        "Threads that unroll two models at once",
        EXACT,
        "",
        ("test_threads.py::test_two_models_at_once", "test_threads.py::test_checkpointed_parts_of_two_models_at_once"),
    ),
    Row(
        "Two threads, one model; an unroll within a loss of an unroll",
        REFUSED,
        "Wait for the other thread, or copy the model. Inside losses use the plain loss.",
        (
            "test_threads.py::test_one_model_twice_is_refused",
            "test_threads.py::test_an_unroll_within_a_loss_is_refused",
        ),
    ),
]

TOOLS = [
    Row(
        "Profilers: `torch.profiler`, `torch.autograd.profiler` with shapes, stacks, flops, memory",
        EXACT,
        "To the last bit. Torch refuses to exchange the contents of tensors that a profiler has seen, so the unroll's "
        "tensors stand in for yours by `__torch_function__`, which is somewhat slower. `isinstance` holds, but "
        "`type(p) is nn.Parameter` does not, so the first such call is proven by K real steps. Start a profiler around "
        "the call: a loss that starts one is refused.",
        (
            "test_observers.py::test_under_an_observer",
            "test_observers.py::test_to_the_last_bit",
            "test_observers.py::test_every_problem_under_a_profiler",
            "test_observers.py::test_a_profiler_that_a_loss_starts",
            "test_observers.py::test_the_very_class_of_a_parameter",
        ),
    ),
    Row(
        "Weak references to D's parameters, Python's and torch's own",
        EXACT,
        "Where torch holds them, as with profilers (the row above).",
        ("test_observers.py::test_under_an_observer", "test_observers.py::test_to_the_last_bit"),
    ),
    Row(
        "Hooks on saved tensors around the call or inside D: `save_on_cpu`, counters of activations, "
        "`allow_mutation_on_saved_tensors`",
        EXACT,
        "As with profilers. A hook may keep the tensor that it is given.",
        (
            "test_observers.py::test_under_an_observer",
            "test_observers.py::test_hooks_on_saved_tensors_that_d_sets_itself",
            "test_observers.py::test_hooks_that_keep_the_users_object_would_be_wrong",
        ),
    ),
    Row(
        "Under one of these, a parameter that goes to code past torch's functions: an extension in C++, an `apply` "
        "kept under another name",
        REFUSED,
        "Switch the tool off for the call, or write `Function.apply(...)` in full.",
        (
            "test_observers.py::test_what_torch_does_not_see_is_refused",
            "test_observers.py::test_an_autograd_function_of_a_parameter",
        ),
    ),
    Row(
        "`FlopCounterMode`, `ModuleTracker`",
        EXACT,
        "They count the K steps and the pass back.",
        ("test_observers.py::test_a_flop_counter",),
    ),
    Row(
        "Anomaly detection, deterministic algorithms, modes of functions and of operators, cProfile, coverage, "
        "tracemalloc, faulthandler, frequent garbage collections, "
        "warnings as errors",
        EXACT,
        "",
        ("test_tools.py::test_around_a_call",),
    ),
    Row(
        "Hooks of loggers on D, `AveragedModel`, a copy or a pickle of the loss in the middle of training",
        EXACT,
        "Hooks of D fire in every inner step.",
        ("test_tools.py::test_in_the_loop", "test_tools.py::test_pickled_in_the_middle_of_training"),
    ),
    Row(
        "`torch.func.grad`, `vmap`, `jvp` around the call; a fake with a tangent",
        REFUSED,
        "Differentiate backwards, by `backward()` or `torch.autograd.grad`. `functional_call` of G is exact.",
        ("test_tools.py::test_transforms_are_refused", "test_tools.py::test_tangents_are_refused"),
    ),
    Row(
        "`python -O`, `-OO`",
        EXACT,
        "No check is an assert.",
        ("test_tools.py::test_python_without_asserts_and_docstrings",),
    ),
    Row(
        "Ctrl-C under a device context or another mode",
        EXACT,
        "The mode is active afterwards.",
        ("test_interrupts.py::test_while_torch_has_left_a_mode", "test_interrupts.py::test_at_every_line"),
    ),
]

SECTIONS = {
    "Discriminators": MODULES,
    "Losses and batches": LOSSES,
    "Optimizers, hooks and transforms": OPTIMIZERS,
    "Training loops": LOOPS,
    "Where it runs": RUNTIME,
    "Tools around the call": TOOLS,
}
