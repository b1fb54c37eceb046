"""Recipes: what to train, on what, how. TOML in, frozen and validated models out; an unknown key is an error."""

from imagenet_pipeline.config.images import AugmentationRecipe, InputRecipe
from imagenet_pipeline.config.keys import Key, recipe_keys
from imagenet_pipeline.config.reading import (
    load_recipe,
    load_run_recipe,
    option_names,
    options,
    parse_overrides,
    read_recipe,
    recipe_text,
)
from imagenet_pipeline.config.recipe import (
    CheckpointRecipe,
    InitialRecipe,
    LoaderRecipe,
    LogRecipe,
    Recipe,
    StoppingRecipe,
    TransferRecipe,
)
from imagenet_pipeline.config.section import looks_like_0_to_1
from imagenet_pipeline.config.update import (
    KEYS_OF_ALL_OPTIMIZERS,
    KEYS_OF_OPTIMIZERS,
    KEYS_OF_SCHEDULES,
    LossRecipe,
    OptimizerRecipe,
    ScheduleRecipe,
)

__all__ = [
    "KEYS_OF_ALL_OPTIMIZERS",
    "KEYS_OF_OPTIMIZERS",
    "KEYS_OF_SCHEDULES",
    "AugmentationRecipe",
    "CheckpointRecipe",
    "InitialRecipe",
    "InputRecipe",
    "Key",
    "LoaderRecipe",
    "LogRecipe",
    "LossRecipe",
    "OptimizerRecipe",
    "Recipe",
    "ScheduleRecipe",
    "StoppingRecipe",
    "TransferRecipe",
    "load_recipe",
    "load_run_recipe",
    "looks_like_0_to_1",
    "option_names",
    "options",
    "parse_overrides",
    "read_recipe",
    "recipe_keys",
    "recipe_text",
]
