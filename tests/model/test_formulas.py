"""Texts of formulas as code: their values, whatever is computed once or written over."""

import pytest
import torch

import norms
from maekit.model import formulas

OTHERS = {  # what a table of one's own may have: conditions, a function that makes its own memory, numbers alone
    "linear": ("u", "1.0"),
    "softplus": ("log(1 + exp(u))", "1 - exp(-f)"),
    "leaky": ("where(u < 0, 0.1 * u, u)", "where(u < 0, 0.1, 1.0)"),
    "rectified": ("relu(u)", "u > 0"),
    "cube": ("u ** 3 / 8", "3 / 8 * u ** 2"),
    "steps": ("(u >= 0.5) + (u <= -0.5)", "0.0"),
    "its own derivative": ("exp(u)", "f"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*norms.FUNCTIONS, *OTHERS])
def test_code_of_a_text_is_the_text(name, dtype):
    """And gives the same again in memory full of something else."""
    value, slope = norms.FUNCTIONS.get(name) or OTHERS[name]
    u, g = torch.linspace(-4, 4, 1001, dtype=dtype), torch.randn(1001, dtype=dtype)
    f = (eval(value, vars(torch), {"u": u}) * 1.0).to(dtype)
    expected = f, g * eval(slope, vars(torch), {"u": u, "f": f})
    for texts, given, wanted in (((value,), (), expected[:1]), ((value, slope), (g,), expected)):
        code, n = formulas.compiled(dtype, *texts)
        for rubbish in (torch.full((n, 1001), torch.nan, dtype=dtype), torch.ones(n, 1001, dtype=dtype)):
            kept = g.clone()
            found = code(u.clone(), *given, *rubbish)
            for ours, theirs in zip((found,) if len(texts) == 1 else found, wanted, strict=True):
                assert ours.dtype == dtype and torch.allclose(
                    ours, theirs, rtol=3e-6 if dtype == torch.float32 else 1e-14
                )
            assert torch.equal(g, kept)


def test_what_is_no_number_stays_none():
    u = torch.tensor([torch.nan, 1.0])
    for name, texts in norms.FUNCTIONS.items():
        code, n = formulas.compiled(torch.float32, *texts)
        f, d = code(u.clone(), torch.full((2,), torch.nan), *torch.zeros(n, 2))
        assert f.isnan().tolist() == [True, False] and d.isnan().all(), name


def test_common_parts_are_computed_once_in_little_memory():
    """Relsign: 1 + u^2, its root and one more, f, their product and the quotient by it; two places besides that of u."""
    text, slope = norms.FUNCTIONS["Relsign"]
    code = formulas._Code(torch.float32)
    formula, derivative = (formulas.ast.parse(t, mode="eval").body for t in (text, slope))
    code.known |= {"f": code.add(formula), "g": "g"}
    code.add(formulas._times_g(derivative))
    assert [function for _, function, *_ in code.steps] == ["mul", "add", "sqrt", "add", "div", "mul", "div"]
    assert formulas.compiled(torch.float32, text, slope)[1] == 2
