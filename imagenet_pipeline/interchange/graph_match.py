"""Two graphs side by side: which variable of one stands where in the other, or where they differ."""

from __future__ import annotations

from collections.abc import Iterator

from imagenet_pipeline.interchange.graph import Graph, Step

Pair = tuple[int, int]


class Different(Exception):
    """The graphs do not compute the same; the text says where the first difference is, from the output back."""


def paired_variables(ours: Graph, theirs: Graph) -> dict[str, str]:
    """The name in `theirs` of each variable of `ours`. Raises Different."""
    names: dict[str, str] = {}
    seen: dict[int, int] = {}
    waiting: list[Pair] = [(ours.root, theirs.root)]
    while waiting:
        first, second = waiting.pop()
        if seen.get(first) == second:
            continue
        step, other = ours.steps[first], theirs.steps[second]
        if step.key != other.key:
            raise Different(_difference(ours, theirs, (first, second)))
        if seen.setdefault(first, second) != second:
            raise Different(
                f"our {step.name} would have to be two layers, {theirs.steps[seen[first]].name!r} among them"
            )
        names |= {name: their for (_, name), (_, their) in zip(step.variables, other.variables, strict=True)}
        waiting += _paired_inputs(ours, theirs, (first, second))
    return names


def _paired_inputs(ours: Graph, theirs: Graph, pair: Pair) -> Iterator[Pair]:
    """Inputs that belong together: in order, but those of a sum, which may stand in any, by their digests."""
    first, second = ours.steps[pair[0]].inputs, theirs.steps[pair[1]].inputs
    if ours.steps[pair[0]].kind != "sum":
        yield from zip(first, second, strict=True)
        return
    left, open_ones = list(second), []
    for index in first:
        equal = next((other for other in left if theirs.steps[other].key == ours.steps[index].key), None)
        if equal is None:
            open_ones.append(index)
        else:
            left.remove(equal)
            yield index, equal
    yield from zip(open_ones, left, strict=True)


def _difference(ours: Graph, theirs: Graph, pair: Pair) -> str:
    """The first step, going back from two that differ somewhere before, that is itself another."""
    while True:
        step, other = ours.steps[pair[0]], theirs.steps[pair[1]]
        if step.kind != other.kind or len(step.inputs) != len(other.inputs):
            return f"our {step.name} is {_phrase(step)}, where it has {other.name[:80]!r}, {_phrase(other)}"
        if step.settings != other.settings:
            words = [
                f"{key} {_plain(value)} in our {step.name}, {_plain(other.settings.get(key))} in {other.name[:80]!r}"
                for key, value in step.settings.items()
                if other.settings.get(key) != value
            ]
            return f"{step.kind}: {'; '.join(words) or 'another function'}"
        unequal = [one for one in _paired_inputs(ours, theirs, pair) if _keys_differ(ours, theirs, one)]
        if not unequal:
            # Step 0, the image, has no inputs: its shape is what differs.
            return f"images of {_plain(step.shape)} in ours, {_plain(other.shape)} in it"
        pair = unequal[0]


def _keys_differ(ours: Graph, theirs: Graph, pair: Pair) -> bool:
    return ours.steps[pair[0]].key != theirs.steps[pair[1]].key


def _phrase(step: Step) -> str:
    article = "an" if step.kind[0] in "aeiou" else "a"
    inputs = f" of {len(step.inputs)}" if len(step.inputs) > 1 else ""
    return f"{article} {step.kind}{inputs}" if step.inputs else "the image"


def _plain(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
