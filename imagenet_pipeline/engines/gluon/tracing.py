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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from imagenet_pipeline.engines.gluon.runtime import mx

Shape = tuple[int, ...]
Note = tuple[str, tuple[int | None, ...], Any, Shape]
"""An operation, the positions of its operands on the tape (None: the next number), its settings, its result's shape."""
Function = Callable[..., list[Any]]

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
"""Results of about so many numbers are copied into their arrays together, and wait for that in memory."""


class Tape:
    """Notes of what is done with arrays, and the numbers they meet, in order."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.numbers: list[float] = []

    def note(self, operation: str, operands: tuple[int | None, ...], settings: Any, shape: Shape) -> Traced:
        """Note an operation; its result."""
        self.notes.append((operation, operands, settings, shape))
        return Traced(self, len(self.notes) - 1, shape)


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
    """Apply `function(arrays, *numbers)` to arrays on every context: its results replace the first of them.

    `arrays` are those of each context, alike in number and shapes. The numbers are Python's; an int is a count. The
    function is pure but for what it reads of its owner, and that must not change its results' numbers.
    """

    def __init__(self, function: Function, arrays: list[list[Any]]) -> None:
        self._function = function
        self._arrays = arrays
        self._graphs: list[_Graph] = []
        self._is_traced = True

    def __call__(self, *numbers: float) -> None:
        graph = self._graph_of(numbers) if self._is_traced else None
        if graph is not None:
            graph.run()
            return
        for arrays in self._arrays:
            for result, array in zip(self._function(arrays, *numbers), arrays, strict=False):
                result.copyto(array)

    def _graph_of(self, numbers: tuple[float, ...]) -> _Graph | None:
        try:
            tape, results = self._trace(numbers)
        except Exception:
            # Of somebody's own rule, which may do anything. An error of its own comes again, on the arrays.
            self._is_traced = False
            return None
        found = next((graph for graph in self._graphs if (graph.notes, graph.results) == (tape.notes, results)), None)
        if found is None and not _overwrites_nothing_read_later(tape.notes, results):
            self._is_traced = False
            return None
        if found is None or not found.fits(tape.numbers):
            others = found.observed if found else [self._trace(_changed(numbers))[0].numbers]
            self._graphs = [graph for graph in self._graphs if graph is not found]
            found = _Graph(tape.notes, results, [tape.numbers, *others], self._arrays)
            self._graphs.append(found)
        found.take(tape.numbers)
        return found

    def _trace(self, numbers: tuple[float, ...]) -> tuple[Tape, list[int]]:
        tape = Tape()
        traced = [tape.note("array", (), (), array.shape) for array in self._arrays[0]]
        results = self._function(traced, *numbers)
        if [result.shape for result in results] != [array.shape for array, _ in zip(traced, results, strict=False)]:
            raise TypeError("not traced: results of other shapes than the arrays they replace")
        return tape, [result.index for result in results]


class _Graph:
    """A tape as MXNet's graph, given the numbers on it in several steps: those that change are inputs.

    Numbers that were equal in every step share an input.
    """

    def __init__(
        self, notes: list[Note], results: list[int], observed: list[list[float]], arrays: list[list[Any]]
    ) -> None:
        self.notes, self.results, self.observed = notes, results, observed
        columns = list(zip(*observed, strict=True))
        first = {column: position for position, column in reversed(list(enumerate(columns)))}
        self._first = np.array([first[column] for column in columns], np.int64)
        self._constants = {first[column]: column[0] for column in first if len(set(column)) == 1}
        self._changing = [position for position in first.values() if position not in self._constants]
        inputs = {position: mx.sym.var(f"number{position}") for position in self._changing}
        symbols = _symbols(notes, iter([inputs.get(first[column], column[0]) for column in columns]))
        outputs = mx.sym.Group(list(_copied_together(symbols, notes, results, arrays[0][0].dtype)))
        names = outputs.list_inputs()
        flags = {"static_alloc": True, "static_shape": True, "data_indices": [], "param_indices": [*range(len(names))]}
        self._call = mx.nd.CachedOp(outputs, [(key, str(value)) for key, value in flags.items()])
        self._inputs, self._numbers, self._outputs = [], [], []
        for own in arrays:
            numbers = {f"number{position}": _number(own[0]) for position in self._changing}
            named = {f"array{index}": array for index, array in enumerate(own)} | numbers
            self._inputs.append([named[name] for name in names])
            self._numbers.append(list(numbers.values()))
            self._outputs.append(own[: len(results)])
        self._values: list[float] = []

    def fits(self, numbers: list[float]) -> bool:
        """Whether these numbers are those it has, but for its inputs."""
        found = np.array(numbers)
        constants = all(numbers[position] == value for position, value in self._constants.items())
        return constants and bool((found[self._first] == found).all())

    def take(self, numbers: list[float]) -> None:
        """Keep the numbers of the next run."""
        self._values = [numbers[position] for position in self._changing]

    def run(self) -> None:
        """Queue the call of each context."""
        for inputs, numbers, outputs in zip(self._inputs, self._numbers, self._outputs, strict=True):
            for array, value in zip(numbers, self._values, strict=True):
                context, dtype = str(array.context), np.dtype(array.dtype).name
                mx.nd._internal._full(shape=(1,), ctx=context, dtype=dtype, value=value, out=array)
            self._call(*inputs, out=outputs)


def _symbols(notes: list[Note], numbers: Iterator[Any]) -> list[Any]:
    """MXNet's symbol for the result of each note; each number is one of Python's or a symbol of shape [1]."""
    symbols: list[Any] = []
    for index, (operation, operands, settings, _) in enumerate(notes):
        values = [next(numbers) if operand is None else symbols[operand] for operand in operands]
        if operation == "array":
            symbols.append(mx.sym.var(f"array{index}"))
        elif operation == "add_n":
            symbols.append(mx.sym.add_n(*values))
        elif operation not in _BROADCAST:
            symbols.append(getattr(values[0], operation)(*settings))
        elif len({notes[operand][3] if operand is not None else (1,) for operand in operands}) == 1 or any(
            isinstance(value, float) for value in values
        ):
            symbols.append(getattr(operator, operation)(*values))
        else:
            symbols.append(getattr(mx.sym, _BROADCAST[operation])(*values))
    return symbols


def _copied_together(symbols: list[Any], notes: list[Note], results: list[int], dtype: Any) -> Iterable[Any]:
    """The results as outputs of the graph, those of a group by one operation; MXNet issues each that has outputs alone.

    In other types than float32 MXNet has none such on CPUs.
    """
    if np.dtype(dtype) != np.float32:
        yield from (mx.sym.identity(symbols[index]) for index in results)
        return
    group: list[Any] = []
    size = 0
    for position, index in enumerate(results, 1):
        group.append(symbols[index])
        size += int(np.prod(notes[index][3]))
        if size > _NUMBERS_A_GROUP or position == len(results):
            yield from mx.sym.amp_multicast(*group, num_outputs=len(group))
            group, size = [], 0


def _overwrites_nothing_read_later(notes: list[Note], results: list[int]) -> bool:
    """Whether all that reads an array with a result is on the way to that result, so that it comes before."""
    readers: dict[int, set[int]] = {array: set() for array in range(len(results))}
    for index, (_, operands, *_) in enumerate(notes):
        for operand in operands:
            if operand in readers:
                readers[operand].add(index)
    return all(array == result or readers[array] <= _way_to(notes, result) for array, result in enumerate(results))


def _way_to(notes: list[Note], result: int) -> set[int]:
    seen, waiting = set(), [result]
    while waiting:
        index = waiting.pop()
        if index not in seen:
            seen.add(index)
            waiting += [operand for operand in notes[index][1] if operand is not None]
    return seen


def _number(like: Any) -> Any:
    return mx.nd.zeros((1,), ctx=like.context, dtype=like.dtype)


def _changed(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Numbers of another step, each changed in its own way."""
    return tuple(
        number + 1 if isinstance(number, int) else 0.75 * number + 0.01 * position
        for position, number in enumerate(numbers, 1)
    )
