"""Encoders: what they read is right, what is missing is learned, no order or grey window matters."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from assistant.encoders.composition import (
    CompositionEncoder,
    composition_statistics,
    element_table,
    parse_formula,
)
from assistant.encoders.crystal import CrystalEncoder, GatedConvolution, read_crystal
from assistant.encoders.encoder import Encoder
from assistant.encoders.table import TableEncoder
from assistant.encoders.text import (
    MASK,
    AttentionPooling,
    FrozenTextEncoder,
    WordPieceEncoder,
    learn_pieces,
    mask_pieces,
)
from assistant.encoders.texture import equalised, texture_descriptors
from assistant.encoders.vector import VectorEncoder
from assistant.errors import ConfigError, DatasetError

D = 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


CIF = """data_{name}
_symmetry_space_group_name_H-M 'P 1'
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {c}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_Int_Tables_number 1
loop_
 _symmetry_equiv_pos_site_id
 _symmetry_equiv_pos_as_xyz
  1 'x, y, z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
{atoms}
"""


def cif(atoms: list[tuple[str, float, float, float]], a: float, c: float | None = None) -> str:
    lines = "\n".join(f"  {s} {s}{i} {x} {y} {z} 1" for i, (s, x, y, z) in enumerate(atoms))
    return CIF.format(name="x", a=a, c=c or a, atoms=lines)


PEROVSKITE = [("Sr", 0, 0, 0), ("Ti", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0), ("O", 0.5, 0, 0.5), ("O", 0, 0.5, 0.5)]
CAESIUM_CHLORIDE = [("Cs", 0.0, 0.0, 0.0), ("Cl", 0.5, 0.5, 0.5)]


# ---- composition


@pytest.mark.parametrize(
    ("formula", "amounts"),
    [
        ("Ag(AuS)2", {47: 1, 79: 2, 16: 2}),
        ("Fe0.5Ni0.5", {26: 0.5, 28: 0.5}),
        ("Ca(Al(OH)4)2", {20: 1, 13: 2, 8: 8, 1: 8}),
        ("CuSO4", {29: 1, 16: 1, 8: 4}),
        ("CO", {6: 1, 8: 1}),
        ("Co", {27: 1}),
        ("K2[PtCl6]", {19: 2, 78: 1, 17: 6}),
    ],
)
def test_formulas_are_read(formula: str, amounts: dict[int, float]) -> None:
    total = sum(amounts.values())
    assert parse_formula(formula) == pytest.approx({z: n / total for z, n in amounts.items()})


@pytest.mark.parametrize(
    "formula", ["", "Xx2", "2", "Fe(", "Fe)", "fe", "Fe-O", "H0", "Fe.", "()", "Fe" * 300, "lot 7"]
)
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(DatasetError) as refused:
        parse_formula(formula)
    assert refused.value.code == "bad_formula"


def test_statistics_of_a_compound_in_closed_form() -> None:
    _, table = element_table()
    width = table.shape[1]
    found = composition_statistics(parse_formula("Fe2O3"))
    mean = 0.4 * table[26] + 0.6 * table[8]
    assert found[:width] == pytest.approx(mean, abs=1e-5)
    assert found[width : 2 * width] == pytest.approx(np.sqrt(0.24) * np.abs(table[26] - table[8]), abs=1e-5)
    assert found[4 * width : 5 * width] == pytest.approx(np.abs(table[26] - table[8]), abs=1e-5)
    assert found[-3:] == pytest.approx([2, -(0.4 * math.log(0.4) + 0.6 * math.log(0.6)), 0.6])


def test_the_table_of_elements_agrees_with_pymatgen() -> None:
    """Written down once; a slipped row or column would show here."""
    core = pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    symbols, table = element_table()
    assert len(symbols) == 103
    theirs = np.array([float(core.Element(symbol).atomic_mass) for symbol in symbols])
    ours = table[1:, 4]
    assert np.corrcoef(theirs, ours)[0, 1] > 0.99999
    assert all(number == core.Element(symbol).Z for symbol, number in symbols.items())


def test_the_order_of_a_formula_does_not_matter() -> None:
    encoder = CompositionEncoder.fit(["Fe2O3", "NaCl", "TiO2"], D).eval()
    one, other = (encoder([encoder.item(f), encoder.item("BaTiO3")]) for f in ("Fe2O3", "O6Fe4"))
    assert torch.allclose(one, other, atol=1e-5)


# ---- crystals


def test_neighbours_of_caesium_chloride_in_closed_form() -> None:
    """8 of the other kind at a sqrt(3) / 2, then 6 of its own at a: the 12th is one of these, so all of them count."""
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    crystal = read_crystal(cif(CAESIUM_CHLORIDE, 4.12))
    assert crystal.numbers.tolist() == [55, 17]
    assert crystal.pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert crystal.distances == pytest.approx([4.12, 4.12 * math.sqrt(3) / 2, 4.12 * math.sqrt(3) / 2, 4.12], abs=1e-3)
    assert crystal.counts.tolist() == [6, 8, 8, 6]


def test_an_atom_with_no_neighbour_in_reach_is_a_crystal_too() -> None:
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    encoder = CrystalEncoder(D).eval()
    alone, pair = [("Fe", 0, 0, 0)], [("Fe", 0, 0, 0), ("H", 0.5, 0.5, 0.5), ("H", 0.52, 0.5, 0.5)]
    items = [encoder.item(cif(atoms, 30.0)) for atoms in (alone, pair)]
    assert [item["counts"].tolist() for item in items] == [[], [1, 1]]
    assert torch.allclose(encoder(items)[0], encoder(items[:1])[0], atol=1e-6)


@pytest.mark.parametrize(
    ("atoms", "a", "c", "sentence"),
    [
        (PEROVSKITE, 3.905, None, "Pm-3m, cubic, 5 atoms, a = 3.90 A"),
        (PEROVSKITE, 3.905, 4.2, "P4/mmm, tetragonal, 5 atoms, a = 3.90 A, c = 4.20 A"),
        (CAESIUM_CHLORIDE, 4.12, None, "Pm-3m, cubic, 2 atoms, a = 4.12 A"),
    ],
)
def test_a_crystal_in_words(atoms: Any, a: float, c: float | None, sentence: str) -> None:
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    assert read_crystal(cif(atoms, a, c)).sentence == sentence


def test_a_crystal_does_not_depend_on_origin_or_cell() -> None:
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    moved = [(s, (x + 0.3) % 1, (y + 0.1) % 1, (z + 0.45) % 1) for s, x, y, z in PEROVSKITE[::-1]]
    doubled = [(s, x, y, z / 2 + half) for s, x, y, z in PEROVSKITE for half in (0, 0.5)]
    encoder = CrystalEncoder(D).eval()
    cells = [cif(PEROVSKITE, 3.905), cif(moved, 3.905), cif(doubled, 3.905, 7.81)]
    vectors = torch.cat([encoder([encoder.item(cell)]) for cell in cells])
    assert torch.allclose(vectors[0], vectors[1], atol=1e-4)
    assert torch.allclose(vectors[0], vectors[2], atol=1e-4)
    together = encoder([encoder.item(cell) for cell in cells])
    assert torch.allclose(together, vectors, atol=1e-5)


def test_gated_convolution_in_closed_form() -> None:
    layer = GatedConvolution(3, 2).double()
    atoms, edges = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    pairs, counts = torch.tensor([[0, 0, 1], [1, 0, 0]]), torch.tensor([2.0, 1.0, 6.0])
    found = layer(atoms, pairs, edges, counts)
    known = layer.norm(atoms)
    here, there = layer.centre(known[1]), layer.neighbour(known[0])
    z = here + there + here * there + layer.edge(edges[2])
    message = torch.sigmoid(z[:3]) * torch.nn.functional.softplus(z[3:]) * 6 / 12
    assert torch.allclose(found[1], atoms[1] + layer.out(message))


@pytest.mark.parametrize("text", ["", "data_x\n", "no crystal", cif([("Fe", 0, 0, 0)], 1e-9)], ids=len)
def test_what_is_no_crystal_is_refused(text: str) -> None:
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    with pytest.raises(DatasetError) as refused:
        read_crystal(text)
    assert refused.value.code == "bad_crystal"


def test_a_crystal_file_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pymatgen.core", reason="the extra [crystal] is not installed")
    huge = tmp_path / "huge.cif"
    huge.write_bytes(b"#" * (2**20 + 1))
    for path in (huge, tmp_path / "none.cif"):
        with pytest.raises(DatasetError) as refused:
            read_crystal(path)
        assert refused.value.code == "bad_crystal"


# ---- tables


ROWS = [
    {"kv": 5.0, "dose": None, "detector": "SE2"},
    {"kv": 15.0, "dose": 3.0, "detector": "InLens"},
    {"kv": None, "dose": 4.0, "detector": None},
]


def test_missing_numbers_and_words_are_learned_not_imputed() -> None:
    encoder = TableEncoder.fit(ROWS, D).double().eval()
    assert encoder.numeric == ["kv", "dose"]
    assert encoder.categories == {"detector": ["InLens", "SE2"]}
    whole = {"kv": 10.0, "dose": 3.5, "detector": "SE2"}  # kv and dose at their mean: where imputing would put them
    vectors = encoder.double()(
        [
            {k: v.double() if v.is_floating_point() else v for k, v in encoder.item(row).items()}
            for row in (whole, {**whole, "kv": None}, {**whole, "dose": math.nan}, {**whole, "detector": "new"}, {})
        ]
    )
    assert vectors.isfinite().all()
    for other in vectors[1:]:
        assert (other - vectors[0]).abs().max() > 1e-3
    new, none = ({**whole, "detector": word} for word in ("new", None))
    assert torch.equal(encoder.item(new)["places"], encoder.item(none)["places"])


def test_numbers_are_scaled_by_what_is_known_of_them() -> None:
    encoder = TableEncoder.fit(ROWS, D)
    assert encoder.standard.mean.tolist() == pytest.approx([10.0, 3.5])
    assert encoder.standard.scale.tolist() == pytest.approx([5.0, 0.5])


# ---- texts


TEXTS = [
    f"{kind} at {kv} kV, dose {dose}"
    for kind in ("etched wafer", "coated fibre")
    for kv in (5, 15)
    for dose in range(9)
]


def test_pooling_in_closed_form() -> None:
    pooling, tokens = AttentionPooling(D).double(), torch.randn(1, 6, D, dtype=torch.float64)
    scores = torch.stack([pooling.query.weight[0] @ torch.tanh(pooling.key.weight @ t) for t in tokens[0]])
    assert torch.allclose(pooling(tokens)[0], scores.softmax(0) @ tokens[0])
    padded, mask = torch.cat([tokens, tokens], dim=1), torch.arange(12)[None] < 6
    assert torch.allclose(pooling(padded, mask), pooling(tokens), atol=1e-12)


def test_masked_pieces_are_learned_from_the_texts() -> None:
    encoder = WordPieceEncoder(learn_pieces(TEXTS), D)
    losses = encoder.pretrain(TEXTS, steps=200)
    assert np.mean(losses[:5]) > 0.9 * math.log(encoder.embedding.num_embeddings)
    assert np.mean(losses[-20:]) < 0.5 * math.log(encoder.embedding.num_embeddings)
    batch = [encoder.item(text) for text in ("etched wafer at 5 kV, dose 3", "etched wafer")]
    assert torch.allclose(encoder(batch)[1], encoder(batch[1:])[0], atol=1e-5)


def test_digits_stand_alone() -> None:
    assert Tokenizer.from_str(learn_pieces([*TEXTS, "115 kV"])).encode("115").tokens == ["1", "1", "5"]


def test_a_fifth_of_what_is_hidden_is_not_masked() -> None:
    tokens, mask = torch.full((400, 50), 7), torch.ones(400, 50, dtype=torch.bool)
    mask[:, 40:] = False
    shown, hidden = mask_pieces(tokens, mask, 100)
    assert not hidden[:, 40:].any()
    assert torch.equal(shown[~hidden], tokens[~hidden])
    assert float(hidden[:, :40].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float((shown[hidden] == MASK).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((shown[hidden] == 7).float().mean()) == pytest.approx(0.1, abs=0.03)


def test_a_local_encoder_is_frozen_and_pooled(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    ours = Tokenizer.from_str(learn_pieces(TEXTS))
    PreTrainedTokenizerFast(tokenizer_object=ours, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=300, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    BertModel(config).save_pretrained(tmp_path)
    encoder = FrozenTextEncoder(str(tmp_path), D)
    items = [encoder.item(text) for text in TEXTS[:3]]
    encoder(items).sum().backward()
    assert encoder(items).shape == (3, D)
    assert not any(name.startswith("_frozen") for name in encoder.state_dict())
    assert all(p.grad is None for p in encoder._frozen[0].parameters())


def test_a_directory_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        FrozenTextEncoder(str(tmp_path), D)
    assert refused.value.code == "no_encoder"


# ---- textures


def picture(seed: int, blur: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    drawn: np.ndarray = gaussian_filter(np.random.default_rng(seed).normal(size=(256, 256)), blur)
    return (drawn - drawn.min()) / np.ptp(drawn)


def test_no_grey_window_changes_a_texture() -> None:
    """Another brightness, contrast or gamma is the same specimen."""
    given = picture(0, 2.0)
    for other in (0.2 + 0.5 * given, given**2.2, 1000 * given):
        assert texture_descriptors(other) == pytest.approx(texture_descriptors(given), abs=1e-5)


def test_textures_are_told_apart() -> None:
    same, again, other = (texture_descriptors(picture(seed, blur)) for seed, blur in ((0, 2.0), (1, 2.0), (2, 4.0)))
    assert np.linalg.norm(same - other) > 4 * np.linalg.norm(same - again)


def test_ranks_of_equal_pixels_are_equal() -> None:
    assert equalised(np.array([[5.0, 1.0], [5.0, 9.0]])).ravel() == pytest.approx([0.5, 0.0, 0.5, 1.0])


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_flat_picture_has_a_texture(value: float) -> None:
    assert np.isfinite(texture_descriptors(np.full((128, 128), value))).all()


# ---- all of them


def encoders() -> list[tuple[Encoder, list[Any]]]:
    vectors = [np.arange(4.0) + i for i in range(3)]
    return [
        (VectorEncoder.fit(vectors, D), vectors),
        (TableEncoder.fit(ROWS, D), ROWS),
        (CompositionEncoder.fit(["Fe2O3", "NaCl"], D), ["Fe2O3", "NaCl", "CuSO4"]),
        (WordPieceEncoder(learn_pieces(TEXTS), D), TEXTS[:3]),
    ]


def test_settings_and_state_make_the_same_encoder_again() -> None:
    import json

    for encoder, values in encoders():
        again = type(encoder)(**json.loads(json.dumps(encoder.settings())))
        again.load_state_dict(encoder.state_dict())
        items = [encoder.item(value) for value in values]
        assert torch.equal(again.eval()([again.item(v) for v in values]), encoder.eval()(items))


def test_a_vector_of_another_width_is_refused() -> None:
    with pytest.raises(DatasetError) as refused:
        VectorEncoder(4, D).item(np.zeros(5))
    assert refused.value.code == "bad_vector"
