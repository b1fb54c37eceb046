"""Vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021), as timm's vit_small_patch16_224
has it. Its sizes are those of DeiT-S (Touvron et al. 2021).

The positions of the patches are trained numbers, one row a patch, so that the network takes images of one size.
"""

from __future__ import annotations

from functools import partial

from imagenet_pipeline.networks.layers import (
    Activation,
    Attention,
    Constant,
    Conv,
    Dense,
    Elementwise,
    Flatten,
    Graph,
    Join,
    LayerNorm,
    Reshape,
    Residual,
    Sequential,
    Slice,
    Transpose,
    stack,
)

NORM = LayerNorm(epsilon=1e-6)


def tokens(count: int, width: int) -> Graph:
    """The patches' vectors behind one that the class is read from, each with its position's numbers added."""
    token, positions = Constant((1, width)), Constant((count + 1, width))
    items = (("token", token), ("join", Join()), ("positions", positions), ("sum", Elementwise("add")))
    return Graph(items, ((), ("token", ""), (), ("join", "positions")))


def block(width: int, heads: int) -> Sequential:
    """Attention between the tokens, then two dense layers on each, four times as wide between them."""
    dense = partial(Dense, last_axis=True)
    attention = stack(norm=NORM, inputs=dense(3 * width), attention=Attention(heads), outputs=dense(width))
    mlp = stack(norm=NORM, dense1=dense(4 * width), active=Activation("gelu"), dense2=dense(width))
    return stack(attention=Residual(attention), mlp=Residual(mlp))


def vit(side: int, patch: int, width: int, depth: int, heads: int, classes: int) -> Sequential:
    """Vectors of patches of an image of `side` pixels, blocks, the first token's vector, classifier."""
    patches = stack(conv=Conv(width, patch, stride=patch), row=Reshape((width, -1)), turned=Transpose((1, 0)))
    blocks = {f"block{number}": block(width, heads) for number in range(1, depth + 1)}
    return stack(
        patches=patches, tokens=tokens((side // patch) ** 2, width), **blocks, token=Slice(0, 0, 1), norm=NORM,
        flatten=Flatten(), classifier=Dense(classes),
    )  # fmt: skip


vit_small_patch16_224 = partial(vit, 224, 16, 384, 12, 6)
