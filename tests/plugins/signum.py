"""Signum (Bernstein et al. 2018): the sign of a momentum, with decoupled weight decay.

An optimizer of another package, to copy: `register_optimizer("signum", SIGNUM)`, or in its pyproject.toml

    [project.entry-points."imagenet_pipeline.optimizers"]
    signum = "signum:SIGNUM"
"""

from imagenet_pipeline.optimizers import UpdateRule


def signum(weight, gradient, slots, step):
    """Bernstein et al. 2018, algorithm 2."""
    (mean,), recipe = slots, step.recipe
    mean = recipe.beta1 * mean + (1 - recipe.beta1) * gradient
    return weight - step.rate * (mean.sign() + recipe.weight_decay * weight), (mean,)


SIGNUM = UpdateRule(("mean_gradient",), signum, keys=("beta1",))
