"""Lion (Chen et al. 2023, algorithm 2): the sign of a momentum, with decoupled weight decay.

An optimizer of another package, to copy: `register_optimizer("lion", LION)`, or in its pyproject.toml

    [project.entry-points."imagenet_pipeline.optimizers"]
    lion = "lion:LION"
"""

from imagenet_pipeline.optimizers import UpdateRule


def lion(weight, gradient, slots, step):
    """Chen et al. 2023, algorithm 2."""
    (mean,), recipe = slots, step.recipe
    direction = (recipe.beta1 * mean + (1 - recipe.beta1) * gradient).sign()
    mean = recipe.beta2 * mean + (1 - recipe.beta2) * gradient
    return weight - step.rate * (direction + recipe.weight_decay * weight), (mean,)


LION = UpdateRule(("mean_gradient",), lion, keys=("beta1", "beta2"))
