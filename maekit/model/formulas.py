"""Texts of formulas, as norms.FUNCTIONS has them, as torch code: what they share is computed once, in as little memory as can be."""

import ast
from functools import cache

import torch

_OPERATORS = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
    ast.USub: "neg",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
}
_INTO = {"sigmoid_backward": ("aten.sigmoid_backward.grad_input", "grad_input")}  # other than torch.name(..., out=)


@cache
def compiled(dtype, value, slope=None):
    """(function, n): of a text of u a function of u and n more tensors of its shape and dtype, all of which it writes over, to f,
    its value; with the text of the derivative, of u and f, a function of u, g and n others to f and g times the derivative, as
    which a second text that has g is read. True counts as 1.

    Large tensors of their own would take longer to get from the system than to fill.
    """
    code = _Code(dtype)
    results = [code.add(ast.parse(value, mode="eval").body)]
    if slope is not None:
        code.known |= {"f": results[0], "g": "g"}
        results.append(code.add(_times_g(ast.parse(slope, mode="eval").body)))
    try:
        return code.function(["u"] if slope is None else ["u", "g"], results)
    except TypeError:  # a function of torch that writes into new memory alone
        return code.function(["u"] if slope is None else ["u", "g"], results, anew=True)


class _Code:
    """Steps (name, torch function, operands' names), each another one; `names` has the constants."""

    def __init__(self, dtype):
        self.dtype, self.steps, self.known, self.names = dtype, [], {"u": "u"}, {"torch": torch, "aten": torch.ops.aten}

    def add(self, node):
        """Name of the value of a node of a formula's syntax tree, after the steps that it takes."""
        if isinstance(node, ast.Name):
            return self.known[node.id]
        if (number := _number(node)) is not None:
            name = f"c{len(self.names)}"
            return self._once(number, name, lambda: self.names.update({name: torch.tensor(number, dtype=self.dtype)}))
        if isinstance(node, ast.Call):
            step = node.func.id, *map(self.add, node.args)
        elif isinstance(node, ast.Compare):
            step = _OPERATORS[type(node.ops[0])], self.add(node.left), self.add(node.comparators[0])
        elif isinstance(node, ast.BinOp):
            step = _OPERATORS[type(node.op)], self.add(node.left), self.add(node.right)
        else:
            step = _OPERATORS[type(node.op)], self.add(node.operand)
        name = f"t{len(self.steps)}"
        return self._once(step, name, lambda: self.steps.append((name, *step)))

    def _once(self, what, name, make):
        if what not in self.known:
            make()
            self.known[what] = name
        return self.known[what]

    def function(self, takes, results, anew=False):
        """(function, n) as of `compiled`, tried out. anew: whether each step makes a tensor of its own."""
        lines, others = self._lines(results, anew)
        source = [f"def function({', '.join(takes + others)}):", *lines, f"    return {', '.join(results)}"]
        exec("\n".join(source), self.names)  # noqa: S102 - texts of the kit's own tables
        function = self.names["function"]
        function(*torch.zeros(len(takes) + len(others), 1, dtype=self.dtype))
        return function, len(others)

    def _lines(self, results, anew):
        """The steps as source, each with its result in the place of one that is not needed any more, and the names of other
        places that they need."""
        last = {operand: i for i, (_, _, *operands) in enumerate(self.steps) for operand in operands}
        conditions = {operands[0] for _, function, *operands in self.steps if function == "where"}
        place, free, others, lines = {"u": "u"}, [], [], []
        for i, (name, function, *operands) in enumerate(self.steps):
            free += [place.pop(o) for o in dict.fromkeys(operands) if o in place and last[o] == i and o not in results]
            call, out = _INTO.get(function, (f"torch.{function}", "out"))
            given = self._given(function, operands)
            if not anew and name not in conditions:
                if not free:
                    others.append(f"m{len(others)}")
                    free.append(others[-1])
                place[name] = free.pop()
                given.append(f"{out}={place[name]}")
            lines.append(f"    {name} = {call}({', '.join(given)})")
        return lines, others

    def _given(self, function, operands):
        """Operands as source: numbers as they are but for the first, which has to be a tensor; torch is slower with others."""
        if function in ("add", "mul"):
            operands = sorted(operands, key=lambda o: o in self.names)
        return [repr(self.names[o].item()) if i and o in self.names else o for i, o in enumerate(operands)]


def _times_g(node):
    g = ast.Name("g")
    if any(isinstance(part, ast.Name) and part.id == "g" for part in ast.walk(node)):
        return node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and _number(node.left) == 1:
        return ast.BinOp(g, ast.Div(), node.right)
    return ast.BinOp(node, ast.Mult(), g)


def _number(node):
    """The number that a node writes, with its sign; None for another one."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
