"""Labels in TeX, as pages show them."""

from __future__ import annotations

import hist
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepscale.view.gallery import Drawing, Encoder, Gallery, encode
from hepscale.view.tex import plain


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("$p_T$ [GeV]", "pT [GeV]"),
        (r"$p_{\mathrm{T}}^{miss}$", "pTmiss"),
        (r"$m_{\mu\mu}$ [GeV/c$^2$]", "mμμ [GeV/c²]"),
        (r"$\Delta R(\eta, \phi_{x_{1}})$", "ΔR(η, φx₁)"),
        (r"$Z \to \mu^+\mu^-$", "Z → μ⁺μ⁻"),
        (r"$\sqrt{s} = 13\,\text{TeV}$", "√s = 13 TeV"),
        (r"$\tilde{\chi}^0_1$, $\bar\nu$", "χ\u0303⁰₁, \u03bd\u0304"),
        (r"$\frac{dN}{dx}$ $10^{-3}$", "dN/dx 10⁻³"),
        (r"$\unknown$", "unknown"),
        ("<b>$x_1$</b>", "<b>x₁</b>"),
        ("p_T costs 5$", "p_T costs 5$"),
        ("", ""),
    ],
)
def test_labels(label, shown):
    assert plain(label) == shown


@given(st.text(st.sampled_from("$\\{}_^ab1 \n"), max_size=30))
def test_any_label_has_an_end(label):
    shown = plain(label)
    assert len(shown) <= len(label)
    assert label.count("$") > 1 or shown == label


def test_pages_get_text_and_pictures_get_tex():
    mass = hist.Hist.new.StrCat(["$Z$"]).Reg(2, 0, 1, label="$p_T$").Double()
    drawing: Drawing = Gallery().draw({"m": mass})
    (shown,), (kept,) = Encoder(label=plain)(drawing)[0]["plots"], encode(drawing)[0]["plots"]
    assert (shown["x"]["label"], shown["series"][0]["name"]) == ("pT", "Z")
    assert (kept["x"]["label"], kept["series"][0]["name"]) == ("$p_T$", "$Z$")
