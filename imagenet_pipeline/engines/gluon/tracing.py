"""A function of many arrays that MXNet runs as one call a context, in place.

A step of an optimizer does the same few operations on hundreds of arrays; from Python each costs more than the work of
most. So the function is run once on arrays that are not there, which note on a tape what is done with them, and the
tape becomes a graph of MXNet's, whose results go into the arrays it began with.

The function is traced anew at each step, for its numbers: learning rate, bias correction. Those that change are inputs
of the graph, arrays of one number a context; written into by MXNet itself, since handing over an array of NumPy's waits
for all work queued before. What cannot be traced runs on the arrays themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from imagenet_pipeline.engines.gluon.runtime import mx

Shape = tuple[int, ...]
Note = tuple[str, tuple[int | None, ...], Any, Shape]
"""An operation, the positions of its operands on the tape (None: the next number), its settings, its result's shape."""
Function = Callable[..., list[list[Any]]]

_BROADCAST = {
    "add": "broadcast_add",
    "sub": "broadcast_sub",
    "mul": "broadcast_mul",
    "truediv": "broadcast_div",
    "pow": "broadcast_power",
    "gt": "broadcast_greater",
    "ge": "broadcast_greater_equal",
    "lt": "broadcast_lesser",
    "le": "broadcast_lesser_equal",
    "eq": "broadcast_equal",
    "ne": "broadcast_not_equal",
}
"""Python's operators, by their names in `operator`, and MXNet's operations for operands of different shapes."""
_NUMBERS_A_GROUP = 2**20
"""Results of about so many numbers are copied into their arrays together, and wait for that. Larger are copied, too:
written straight into a float32 array, Adam's step of one was wrong (MXNet 1.9.1)."""


class Tape:
    """Notes of what is done with arrays, the numbers they meet, in order, and the arrays that results replace."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.numbers: list[float] = []
        self.results: dict[int, int] = {}

    def note(self, operation: str, operands: tuple[int | None, ...], settings: Any, shape: Shape) -> Traced:
        """Note an operation; its result."""
        self.notes.append((operation, operands, settings, shape))
        return Traced(self, len(self.notes) - 1, shape)

    def array(self, shape: Shape) -> Traced:
        """Note an array that is given; these come first."""
        return self.note("array", (), (), shape)

    def replace(self, array: Traced, result: Traced) -> None:
        """Let a result replace an array that was given."""
        if result.shape != array.shape:
            raise TypeError("not traced: a result of another shape than the array it replaces")
        self.results[array.index] = result.index

    def does_as(self, other: Tape) -> bool:
        """True where it notes the same, but for the numbers."""
        return self.notes == other.notes and self.results == other.results


class Traced:
    """An array that is not there. It can do what the written rules ask of one, and has no numbers to look at."""

    __slots__ = ("_tape", "index", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tape: Tape, index: int, shape: Shape) -> None:
        self._tape = tape
        self.index = index
        self.shape = shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def sqrt(self) -> Traced:
        """Square roots."""
        return self._done("sqrt", (), self.shape)

    def sign(self) -> Traced:
        """Signs: -1, 0 or 1."""
        return self._done("sign", (), self.shape)

    def abs(self) -> Traced:
        """Absolute values."""
        return self._done("abs", (), self.shape)

    def astype(self, dtype: str) -> Traced:
        """The numbers in another type."""
        return self._done("astype", (dtype,), self.shape)

    def sum(self, axis: int | None = None) -> Traced:
        """Sum over all axes, of shape [1] as MXNet has it, or over a single axis of several."""
        if axis is None:
            return self._done("sum", (), (1,))
        if len(self.shape) < 2:
            raise TypeError("not traced: the sum over the only axis")
        axis %= len(self.shape)
        return self._done("sum", (axis,), self.shape[:axis] + self.shape[axis + 1 :])

    def reshape(self, shape: Sequence[int]) -> Traced:
        """The numbers in another shape, of which one length may be -1."""
        known = int(np.prod([length for length in shape if length != -1]))
        whole = tuple(int(np.prod(self.shape)) // known if length == -1 else int(length) for length in shape)
        return self._done("reshape", (whole,), whole)

    @property
    def T(self) -> Traced:
        """The matrix [m, n] transposed."""
        return self._done("transpose", (), self.shape[::-1])

    def __matmul__(self, other: Traced) -> Traced:
        return self._tape.note("dot", (self.index, other.index), (), (self.shape[0], other.shape[1]))

    def __bool__(self) -> bool:
        raise TypeError("not traced: a branch on the numbers of an array")

    def _done(self, operation: str, settings: tuple[Any, ...], shape: Shape) -> Traced:
        return self._tape.note(operation, (self.index,), settings, shape)

    def _with(self, operation: str, other: Any, reflected: bool = False) -> Traced:
        index, shape = None, self.shape
        if isinstance(other, Traced):
            index = other.index
            if other.shape != shape:
                shape = np.broadcast_shapes(shape, other.shape)
        elif isinstance(other, int | float | np.number):
            self._tape.numbers.append(float(other))
        else:
            raise TypeError(f"not traced: an array and a {type(other).__name__}")
        return self._tape.note(operation, (index, self.index) if reflected else (self.index, index), (), shape)

    def __add__(self, other: Any) -> Traced:
        return self._with("add", other)

    def __radd__(self, other: Any) -> Traced:
        return self._with("add", other, reflected=True)

    def __sub__(self, other: Any) -> Traced:
        return self._with("sub", other)

    def __rsub__(self, other: Any) -> Traced:
        return self._with("sub", other, reflected=True)

    def __mul__(self, other: Any) -> Traced:
        return self._with("mul", other)

    def __rmul__(self, other: Any) -> Traced:
        return self._with("mul", other, reflected=True)

    def __truediv__(self, other: Any) -> Traced:
        return self._with("truediv", other)

    def __rtruediv__(self, other: Any) -> Traced:
        return self._with("truediv", other, reflected=True)

    def __pow__(self, other: Any) -> Traced:
        return self._with("pow", other)

    def __neg__(self) -> Traced:
        return self._with("mul", -1.0)

    def __gt__(self, other: Any) -> Traced:
        return self._with("gt", other)

    def __ge__(self, other: Any) -> Traced:
        return self._with("ge", other)

    def __lt__(self, other: Any) -> Traced:
        return self._with("lt", other)

    def __le__(self, other: Any) -> Traced:
        return self._with("le", other)

    def __eq__(self, other: object) -> Traced:  # type: ignore[override]
        return self._with("eq", other)

    def __ne__(self, other: object) -> Traced:  # type: ignore[override]
        return self._with("ne", other)


def add_up(arrays: Sequence[Any]) -> Any:
    """The sum of arrays of equal shape, MXNet's or traced."""
    if isinstance(arrays[0], Traced):
        return arrays[0]._tape.note("add_n", tuple(array.index for array in arrays), (), arrays[0].shape)
    return mx.nd.add_n(*arrays)


class InOneCall:
    """Apply `function(indexes, items, *numbers)` to the arrays of items on every context, in place.

    `items[context][index]` are an item's arrays. The function gives the results of each item at these indexes, which
    replace the first of its arrays. The numbers are Python's, an int is a count; what else the function reads stays.
    Items of the same of the `kinds` meet the same numbers: but for the first time, one of a kind is traced.
    """

    def __init__(self, function: Function, items: list[list[list[Any]]], kinds: Iterable[Hashable] = ()) -> None:
        self._function = function
        self._items = items
        self._all = list(range(len(items[0])))
        first = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
        self._examples = sorted(first.values()) or self._all
        self._graphs: list[_Graph] = []
        self._observed: list[tuple[float, ...]] = []
        self._is_traced = True

    def __call__(self, *numbers: float) -> None:
        """Queue a step with these numbers."""
        if self._is_traced:
            try:
                graph, values = self._graph_and_values(numbers)
            except Exception:
                # Of somebody's own rule, which may do anything. An error of its own comes again, on the arrays.
                self._is_traced = False
            else:
                graph.run(values)
                return
        for items in self._items:
            given = {id(array) for arrays in items for array in arrays}
            for results, arrays in zip(self._function(self._all, items, *numbers), items, strict=True):
                # A result may be an array that was given, and that is about to be replaced.
                kept = [result.copy() if id(result) in given else result for result in results]
                for result, array in zip(kept, arrays, strict=False):
                    result.copyto(array)

    def _graph_and_values(self, numbers: tuple[float, ...]) -> tuple[_Graph, list[float]]:
        """The graph for these numbers, and the values of its inputs."""
        seen = self._trace(self._examples, numbers)
        for graph in self._graphs:
            values = graph.values(seen)
            if values is not None:
                return graph, values
        self._observed.insert(0, numbers)
        steps = [*self._observed, _changed(self._observed[-1])]
        wholes = [self._trace(self._all, step) for step in steps]
        examples = [self._trace(self._examples, step) for step in steps]
        if not set(_columns(wholes)) <= set(_columns(examples)):
            self._examples, examples = self._all, wholes
        graph = _Graph(wholes, examples, [[array for item in items for array in item] for items in self._items])
        self._graphs = [graph, *(other for other in self._graphs if not other.example.does_as(graph.example))]
        values = graph.values(examples[0])
        if values is None:
            raise ValueError("not traced: a number that is NaN")
        return graph, values

    def _trace(self, indexes: list[int], numbers: tuple[float, ...]) -> Tape:
        tape = Tape()
        items = [[tape.array(array.shape) for array in self._items[0][index]] for index in indexes]
        for arrays, results in zip(items, self._function(indexes, items, *numbers), strict=True):
            for array, result in zip(arrays, results, strict=False):
                tape.replace(array, result)
        return tape


class _Graph:
    """A tape as MXNet's graph. `wholes` are tapes of several steps, the first of which counts; `examples` are parts.

    Numbers that were the same in each of those steps are constants; others are inputs, those that were always equal to
    each other the same input.
    """

    def __init__(self, wholes: list[Tape], examples: list[Tape], arrays: list[list[Any]]) -> None:
        columns, own = _columns(examples), _columns(wholes)
        first = {column: position for position, column in reversed(list(enumerate(columns)))}
        self.example = examples[0]
        self._first = [first[column] for column in columns]
        self._constants = [(first[column], column[0]) for column in first if len(set(column)) == 1]
        self._changing = {first[column]: column for column in set(own) if len(set(column)) > 1}
        inputs = {column: mx.sym.var(f"number{position}") for position, column in self._changing.items()}
        symbols = _symbols(wholes[0].notes, iter([inputs.get(column, column[0]) for column in own]))
        outputs = mx.sym.Group(list(_outputs(symbols, wholes[0], arrays[0][0].dtype)))
        names = outputs.list_inputs()
        flags = {"static_alloc": True, "static_shape": True, "data_indices": [], "param_indices": [*range(len(names))]}
        self._call = mx.nd.CachedOp(outputs, [(key, str(value)) for key, value in flags.items()])
        self._contexts: list[tuple[list[Any], list[Any], list[Any]]] = []
        for copies in arrays:
            numbers = [mx.nd.zeros((1,), ctx=copies[0].context, dtype=copies[0].dtype) for _ in self._changing]
            named = {f"array{index}": array for index, array in enumerate(copies)}
            named |= {f"number{position}": number for position, number in zip(self._changing, numbers, strict=True)}
            replaced = [copies[array] for array in wholes[0].results]
            self._contexts.append(([named[name] for name in names], numbers, replaced))

    def values(self, example: Tape) -> list[float] | None:
        """The values of its inputs in this step; None where another graph is needed."""
        numbers = example.numbers
        if not example.does_as(self.example) or any(numbers[position] != value for position, value in self._constants):
            return None
        alike = all(numbers[first] == number for first, number in zip(self._first, numbers, strict=True))
        return [numbers[position] for position in self._changing] if alike else None

    def run(self, values: list[float]) -> None:
        """Queue the call of each context."""
        for inputs, numbers, replaced in self._contexts:
            for array, value in zip(numbers, values, strict=True):
                context, dtype = str(array.context), np.dtype(array.dtype).name
                mx.nd._internal._full(shape=(1,), ctx=context, dtype=dtype, value=value, out=array)
            self._call(*inputs, out=replaced)


def _columns(tapes: list[Tape]) -> list[tuple[float, ...]]:
    """The numbers at each place of the first tape: its own, and those of all that note the same."""
    return list(zip(*(tape.numbers for tape in tapes if tape.does_as(tapes[0])), strict=True))


def _symbols(notes: list[Note], numbers: Iterator[Any]) -> list[Any]:
    """MXNet's symbol for the result of each note; each number is one of Python's or a symbol of shape [1]."""
    symbols: list[Any] = []
    for index, (operation, operands, settings, _) in enumerate(notes):
        values = [next(numbers) if operand is None else symbols[operand] for operand in operands]
        if operation == "array":
            symbols.append(mx.sym.var(f"array{index}"))
        elif operation in ("add_n", "dot"):
            symbols.append(getattr(mx.sym, operation)(*values))
        elif operation not in _BROADCAST:
            symbols.append(getattr(values[0], operation)(*settings))
        elif len({notes[operand][3] if operand is not None else (1,) for operand in operands}) == 1 or any(
            isinstance(value, float) for value in values
        ):
            symbols.append(getattr(operator, operation)(*values))
        else:
            symbols.append(getattr(mx.sym, _BROADCAST[operation])(*values))
    return symbols


def _outputs(symbols: list[Any], tape: Tape, dtype: Any) -> Iterator[Any]:
    """The results as outputs of the graph; MXNet issues what has outputs by itself, so small ones leave in groups.

    An operation copies a group into the arrays. In other types than float32 MXNet has none such on CPUs.
    """
    if not _overwrites_nothing_read_later(tape):
        raise TypeError("not traced: an array is read after it was replaced")
    group: list[Any] = []
    size = 0
    for result in tape.results.values():
        numbers = int(np.prod(tape.notes[result][3]))
        if np.dtype(dtype) != np.float32:
            yield from _copied_together(group)
            yield _by_itself(symbols, tape, result)
            group, size = [], 0
            continue
        group.append(symbols[result])
        size += numbers
        if size > _NUMBERS_A_GROUP:
            yield from _copied_together(group)
            group, size = [], 0
    yield from _copied_together(group)


def _copied_together(group: list[Any]) -> Iterable[Any]:
    return mx.sym.amp_multicast(*group, num_outputs=len(group)) if group else ()


def _by_itself(symbols: list[Any], tape: Tape, result: int) -> Any:
    # An array that was given, or another's result, must be copied; any other result is written where it belongs.
    is_own = tape.notes[result][0] != "array" and list(tape.results.values()).count(result) == 1
    return symbols[result] if is_own else mx.sym.identity(symbols[result])


def _overwrites_nothing_read_later(tape: Tape) -> bool:
    """True where all that reads an array is on the way to the result that replaces it, and so comes before."""
    ways = {array: _way_to(tape.notes, result) for array, result in tape.results.items()}
    readers: dict[int, set[int]] = {array: set() for array in tape.results}
    for index in set().union(*ways.values()):
        for operand in tape.notes[index][1]:
            if operand in readers:
                readers[operand].add(index)
    return all(
        (array == result or result not in readers) and readers[array] <= ways[array]
        for array, result in tape.results.items()
    )


def _way_to(notes: list[Note], result: int) -> set[int]:
    seen, waiting = set(), [result]
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting += [operand for operand in notes[index][1] if operand is not None]
    return seen


def _changed(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers of another step, each changed in its own way."""
    return tuple(
        number + 1 if isinstance(number, int) else 0.75 * number + 0.01 * position
        for position, number in enumerate(numbers, 1)
    )
