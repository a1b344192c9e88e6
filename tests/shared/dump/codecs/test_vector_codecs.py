"""Codecs of vectors: within the error that each states, by torch and by polars alike, outlier channels or not."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from shared.dump.codecs.base import NotFiniteError, VectorCodec
from shared.dump.codecs.vectors.fitting import fit_vector_codec, reconstruction
from shared.dump.codecs.vectors.kinds import VECTOR_KINDS
from shared.dump.codecs.vectors.low_rank import LowRankVectors
from shared.dump.codecs.vectors.quantized import Float16Vectors, Int4Vectors, Int8Vectors
from shared.dump.codecs.vectors.reconstruction import Reconstruction
from shared.errors import DumpError

seeds = st.integers(0, 2**31)
scales = st.sampled_from([0.0, 1e-44, 1e-36, 1e-8, 1e-3, 1.0, 1e4, 1e30])
quick = settings(max_examples=60)


def random_vectors(seed: int, positions: int, width: int, scale: float = 1.0) -> Tensor:
    """Normally distributed vectors; some are zero, some have one large channel, some have channels of equal size."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(positions, width, generator=generator) * scale
    vectors[::5] = 0
    vectors[1::5, 1:] *= 1e-4
    vectors[2::5] = vectors[2::5].sign() * scale
    return vectors


def planted(seed: int, positions: int = 400, width: int = 96, everywhere: bool = True) -> tuple[Tensor, list[int]]:
    """Standard normal vectors, with three channels 100 to 1000 times larger on all tokens or on one in fifty."""
    vectors = torch.randn(positions, width, generator=torch.Generator().manual_seed(seed))
    channels = [5, 40, 77]
    vectors[:: 1 if everywhere else 50, channels] *= torch.tensor([100.0, 1000.0, 300.0])
    return vectors, channels


def low_rank_vectors(seed: int, positions: int, width: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(positions, rank, generator=generator), torch.randn(rank, width, generator=generator)
    return factors[0] @ factors[1] + torch.randn(width, generator=generator)


def stored(codec: VectorCodec, vectors: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """The columns as a shard keeps them: numpy, of the type and width that the codec declares."""
    encoded = codec.encode(vectors)
    assert list(encoded) == [column.name for column in codec.columns]
    columns = {}
    for column in codec.columns:
        values = columns[column.name] = encoded[column.name].numpy()
        assert values.dtype == column.dtype
        assert values.shape == ((len(vectors),) if column.width == 1 else (len(vectors), column.width))
    return columns


def through_storage(codec: VectorCodec, vectors: Tensor) -> Tensor:
    columns = {name: torch.from_numpy(values) for name, values in stored(codec, vectors).items()}
    decoded = codec.decode(columns)
    assert decoded.dtype == torch.float32
    assert decoded.shape == vectors.shape
    return decoded


def through_polars(codec: VectorCodec, vectors: Tensor) -> Tensor:
    frame = pl.DataFrame(
        [
            pl.Series(column.name, values if column.width == 1 else [row.tobytes() for row in values],
                      dtype=None if column.width == 1 else pl.Binary)
            for column, values in zip(codec.columns, stored(codec, vectors).values(), strict=True)
        ]
    )  # fmt: skip
    seen = frame.lazy().select(vector=codec.vector_expr()).collect()
    assert seen.schema == {"vector": pl.List(pl.Float32)}
    return torch.tensor(seen["vector"].to_list(), dtype=torch.float32).reshape(vectors.shape)


def channels_of(data: st.DataObject, width: int) -> tuple[int, ...]:
    return tuple(sorted(data.draw(st.sets(st.integers(0, width - 1), max_size=min(3, width - 1)))))


@quick
@given(seeds, st.integers(0, 6), st.integers(1, 70), st.data(), scales)
def test_int8_is_within_its_stated_error(
    seed: int, positions: int, width: int, data: st.DataObject, scale: float
) -> None:
    apart = channels_of(data, width)
    vectors = random_vectors(seed, positions, width, scale)
    found = through_storage(Int8Vectors(name="h", width=width, outlier_channels=apart), vectors)
    ordinary = [channel for channel in range(width) if channel not in apart]
    assert torch.equal(found[:, apart], vectors[:, apart])
    exact = vectors[:, ordinary].double()
    allowed = exact.abs().amax(-1, keepdim=True) / 253 + 1e-38
    assert ((found[:, ordinary].double() - exact).abs() <= allowed).all()


@quick
@given(seeds, st.integers(0, 6), st.integers(1, 70), st.sampled_from([1, 3, 8, 32]), st.data(), scales)
def test_int4_is_within_its_stated_error(
    seed: int, positions: int, width: int, group: int, data: st.DataObject, scale: float
) -> None:
    apart = channels_of(data, width)
    vectors = random_vectors(seed, positions, width, scale)
    codec = Int4Vectors(name="h", width=width, group=group, outlier_channels=apart)
    found = through_storage(codec, vectors)
    ordinary = [channel for channel in range(width) if channel not in apart]
    assert torch.equal(found[:, apart], vectors[:, apart])
    exact = vectors[:, ordinary].double()
    of_position = exact.abs().amax(-1, keepdim=True)
    for of_group, seen in zip(exact.split(group, -1), found[:, ordinary].double().split(group, -1), strict=True):
        allowed = 0.194 * of_group.abs().amax(-1, keepdim=True) + 0.0008 * of_position + 1e-35
        assert ((seen - of_group).abs() <= allowed).all()


def test_int4_meets_the_largest_of_a_group_and_loses_little_of_the_others() -> None:
    """0.0066 of the squared length of normally distributed vectors; even levels from -7 to 7 lose 0.0095 of it."""
    vectors = torch.randn(2000, 96, generator=torch.Generator().manual_seed(0))
    codec = Int4Vectors(name="h", width=96)
    found = codec.decode(codec.encode(vectors))
    largest = vectors.unflatten(-1, (3, 32)).abs().argmax(-1, keepdim=True)
    exact, seen = (values.unflatten(-1, (3, 32)).gather(-1, largest) for values in (vectors, found))
    assert ((seen - exact).abs() <= exact.abs().amax(1, keepdim=True) / 126).all()
    assert reconstruction(codec, vectors).relative_error < 0.007


def test_vectors_of_zeros_have_codes_of_zero_and_a_scale_to_divide_by() -> None:
    int8 = Int8Vectors(name="h", width=4).encode(torch.zeros(2, 4))
    int4 = Int4Vectors(name="h", width=4).encode(torch.zeros(2, 4))
    assert int8["h.codes"].tolist() == [[0] * 4] * 2
    assert int4["h.codes"].tolist() == [[0x88] * 2] * 2
    assert int8["h.scale"].tolist() == int4["h.scale"].tolist() == [torch.finfo(torch.float32).tiny] * 2


@quick
@given(seeds, st.integers(0, 6), st.integers(1, 40), st.sampled_from(list(VECTOR_KINDS)), st.data())
def test_low_rank_is_exact_up_to_its_coefficients_when_the_data_is_of_that_rank(
    seed: int, positions: int, width: int, kind: str, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, width))
    sample = low_rank_vectors(seed, 100, width, rank)
    codec = fit_vector_codec(kind, "h", sample, rank=rank)
    assert isinstance(codec, LowRankVectors)
    vectors = sample[:positions]
    found = through_storage(codec, vectors)
    coefficients = codec.encode(vectors)
    # Against the float64 product of what the coefficients' codec holds: rounding of float32 is all that may differ.
    constants = codec.constants()
    held = codec.coefficient_codec.decode(coefficients).double()
    reference = held @ constants["basis"].double() + constants["mean"].double()
    size = vectors.norm(dim=-1, keepdim=True) + constants["mean"].norm()
    assert ((found - reference).abs() <= 2e-6 * size).all()
    # And against the vectors: the basis loses nothing, so all error is that of the coefficients.
    wanted = (vectors.double() - constants["mean"].double()) @ constants["basis"].double().T
    error, of_coefficients = (found - vectors).norm(dim=-1), (held - wanted).norm(dim=-1)
    assert ((error - of_coefficients).abs() <= 2e-5 * size.squeeze(-1)).all()


def test_the_basis_is_the_best_of_its_rank() -> None:
    """Against float64's singular values of the centred sample: no basis of rank 8 leaves out less (Eckart-Young)."""
    sample = torch.randn(300, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, 24) + 5
    codec = fit_vector_codec("float16", "h", sample, rank=8)
    singular = torch.linalg.svdvals((sample - sample.mean(0)).double())
    left_out = (codec.decode(codec.encode(sample)) - sample).double().square().sum()
    assert left_out.item() == pytest.approx(singular[8:].square().sum().item(), rel=1e-4)


@quick
@given(seeds, st.integers(0, 5), st.integers(1, 40), st.sampled_from(list(VECTOR_KINDS)), st.data())
def test_polars_and_torch_decode_alike(seed: int, positions: int, width: int, kind: str, data: st.DataObject) -> None:
    vectors = random_vectors(seed, positions, width)
    apart = {} if kind == "float16" else {"outlier_channels": channels_of(data, width)}
    codec = VECTOR_KINDS[kind].model_validate({"name": "hidden.1", "width": width, **apart})
    assert torch.equal(through_polars(codec, vectors), through_storage(codec, vectors))

    rank = data.draw(st.integers(1, width))
    low_rank = fit_vector_codec(kind, "hidden.1", random_vectors(seed, 30, width), rank=rank)
    torch.testing.assert_close(
        through_polars(low_rank, vectors), through_storage(low_rank, vectors), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_planted_outlier_channels_cost_the_others_nothing(kind: str, everywhere: bool) -> None:
    vectors, channels = planted(0, everywhere=everywhere)
    ordinary = [channel for channel in range(vectors.shape[1]) if channel not in channels]
    alone = fit_vector_codec(kind, "h", vectors[:, ordinary])
    fitted = fit_vector_codec(kind, "h", vectors)
    without = VECTOR_KINDS[kind](name="h", width=vectors.shape[1])
    assert set(channels) <= set(fitted.outlier_channels)

    def worst(codec: VectorCodec) -> float:
        """The largest mean squared error of a position's ordinary channels."""
        wide = codec.width == vectors.shape[1]
        found = codec.decode(codec.encode(vectors if wide else vectors[:, ordinary]))
        return (found[:, ordinary if wide else slice(None)] - vectors[:, ordinary]).square().mean(-1).max().item()

    assert worst(fitted) <= 1.2 * worst(alone)
    # Int4's groups confine the damage, so of the three channels each spoils one group of 32 and no more.
    assert worst(without) > (0.3 if kind == "int8" else 20 * worst(alone))


def test_outlier_channels_are_exact_beyond_float16() -> None:
    vectors, channels = planted(1)
    vectors[:, channels] *= 1e6
    for kind in ("int8", "int4"):
        codec = fit_vector_codec(kind, "h", vectors)
        assert torch.equal(codec.decode(codec.encode(vectors))[:, channels], vectors[:, channels])
    with pytest.raises(NotFiniteError):
        Float16Vectors(name="h", width=96).encode(vectors)


def test_low_rank_with_planted_outliers_keeps_its_coefficients_fine() -> None:
    """The outliers are the first coefficients; with one scale for all of them the others would be lost."""
    vectors, _ = planted(2)
    in_float16, in_int8 = (fit_vector_codec(kind, "h", vectors, rank=80) for kind in ("float16", "int8"))
    assert in_int8.outlier_coefficients[:3] == (0, 1, 2)
    assert reconstruction(in_int8, vectors).channel_error < 1.05 * reconstruction(in_float16, vectors).channel_error


def test_no_channel_is_kept_apart_where_that_does_not_pay() -> None:
    vectors = torch.randn(500, 128, generator=torch.Generator().manual_seed(0))
    assert fit_vector_codec("int8", "h", vectors).outlier_channels == ()
    assert fit_vector_codec("int4", "h", vectors).outlier_channels == ()


@pytest.mark.parametrize("kind", VECTOR_KINDS)
@pytest.mark.parametrize("rank", [None, 7])
def test_fitting_twice_gives_the_same_codec(kind: str, rank: int | None) -> None:
    vectors, _ = planted(3)
    first, again = (fit_vector_codec(kind, "hidden.2", vectors, rank=rank) for _ in range(2))
    assert first == again
    assert first.model_dump_json() == again.model_dump_json()


def test_the_sign_of_a_basis_vector_is_fixed() -> None:
    """An eigenvector's is not: LAPACK of another version may turn it round."""
    basis = fit_vector_codec("float16", "h", random_vectors(0, 60, 40), rank=20).constants()["basis"]
    assert (basis.gather(-1, basis.abs().argmax(-1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("kind", VECTOR_KINDS)
@pytest.mark.parametrize("rank", [None, 7])
def test_a_codec_comes_back_from_the_manifest_with_its_constants(kind: str, rank: int | None) -> None:
    vectors, _ = planted(4)
    codec = fit_vector_codec(kind, "hidden.2", vectors, rank=rank)
    read: VectorCodec = TypeAdapter(type(codec)).validate_json(codec.model_dump_json())
    assert read == codec
    assert (read.constants_file is None) == (rank is None) == (not codec.constants())
    opened = read.with_constants(codec.constants())
    assert torch.equal(opened.decode(codec.encode(vectors)), codec.decode(codec.encode(vectors)))


def test_low_rank_without_its_basis_or_with_another_is_refused() -> None:
    vectors, _ = planted(5)
    codec = fit_vector_codec("int8", "hidden.2", vectors, rank=7)
    bare = LowRankVectors.model_validate_json(codec.model_dump_json())
    for use in (lambda: bare.decode(codec.encode(vectors)), lambda: bare.encode(vectors), bare.vector_expr):
        with pytest.raises(DumpError, match=r"'hidden\.2' .*weights/hidden\.2\.safetensors"):
            use()
    changed = {**codec.constants(), "mean": codec.constants()["mean"] + 1e-6}
    with pytest.raises(DumpError, match=r"weights/hidden\.2\.safetensors.*SHA-256"):
        bare.with_constants(changed)
    with pytest.raises(DumpError, match="SHA-256"):
        bare.with_constants({})


def test_low_rank_is_decoded_in_float32_within_autocast() -> None:
    vectors, _ = planted(6)
    codec = fit_vector_codec("float16", "h", vectors, rank=20)
    with torch.autocast("cpu", torch.bfloat16):
        within = codec.decode(codec.encode(vectors))
    assert torch.equal(within, codec.decode(codec.encode(vectors)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("channel", [0, 3])
def test_a_broken_vector_is_refused_with_its_position(bad: float, channel: int) -> None:
    vectors = random_vectors(0, 4, 6)
    vectors[2, channel] = bad
    sound = random_vectors(0, 30, 6)
    codecs = [
        Float16Vectors(name="h", width=6),
        Int8Vectors(name="h", width=6, outlier_channels=(3,)),
        Int4Vectors(name="h", width=6, outlier_channels=(3,)),
        *(fit_vector_codec(kind, "h", sound, rank=2) for kind in VECTOR_KINDS),
    ]
    for codec in codecs:
        with pytest.raises(NotFiniteError) as raised:
            codec.encode(vectors)
        assert raised.value.position == 2
    for kind in VECTOR_KINDS:
        for rank in (None, 2):
            with pytest.raises(NotFiniteError):
                fit_vector_codec(kind, "h", vectors, rank=rank)


def test_vectors_of_any_floating_type_are_encoded_as_their_float32_is() -> None:
    sound = random_vectors(0, 80, 64)
    codecs = [VECTOR_KINDS[kind](name="h", width=64) for kind in VECTOR_KINDS]
    codecs_of_rank = [fit_vector_codec(kind, "h", sound, rank=9) for kind in VECTOR_KINDS]
    for codec in [*codecs, *codecs_of_rank]:
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            vectors = sound.to(dtype)
            assert torch.equal(through_storage(codec, vectors), through_storage(codec, vectors.float()))


def test_columns_declare_what_is_stored() -> None:
    def columns(codec: VectorCodec) -> list[tuple[str, str, int | None]]:
        return [(column.name, column.dtype, column.width) for column in codec.columns]

    assert columns(Float16Vectors(name="hidden.2", width=5)) == [("hidden.2", "float16", 5)]
    assert columns(Int8Vectors(name="h", width=5)) == [("h.codes", "int8", 5), ("h.scale", "float32", 1)]
    assert columns(Int4Vectors(name="h", width=38, outlier_channels=(3,))) == [
        ("h.codes", "uint8", 19),
        ("h.group_scales", "int8", 2),
        ("h.scale", "float32", 1),
        ("h.outliers", "float32", 1),
    ]


@pytest.mark.parametrize("channels", [(1, 0), (0, 0), (-1,), (4,), (0, 1, 2, 3)])
def test_outlier_channels_that_cannot_be_are_refused(channels: tuple[int, ...]) -> None:
    for kind in (Int8Vectors, Int4Vectors):
        with pytest.raises(ValidationError, match="outlier channels"):
            kind(name="h", width=4, outlier_channels=channels)


@pytest.mark.parametrize("rank", [0, 7])
def test_a_rank_that_cannot_be_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank}: vectors of width 6"):
        fit_vector_codec("int8", "h", random_vectors(0, 30, 6), rank=rank)


def test_reconstruction_is_what_was_lost() -> None:
    """Float16 of small integers is exact; a codec without the outlier channels loses what only `channel_error` sees."""
    exact = torch.randint(-9, 10, (50, 12), generator=torch.Generator().manual_seed(0)).float()
    assert reconstruction(Float16Vectors(name="h", width=12), exact) == pytest.approx(Reconstruction(0.0, 1.0, 0.0))
    vectors, _ = planted(7)
    blind = reconstruction(Int8Vectors(name="h", width=96), vectors)
    assert blind.relative_error < 1e-4
    assert blind.cosine > 0.9999
    assert blind.channel_error > 0.3
    assert reconstruction(fit_vector_codec("int8", "h", vectors), vectors).channel_error < 1e-3


def test_reconstruction_against_float64() -> None:
    vectors, codec = random_vectors(1, 40, 16) + 1, Int4Vectors(name="h", width=16)
    found = codec.decode(codec.encode(vectors)).numpy().astype(np.float64)
    exact = vectors.numpy().astype(np.float64)
    squared = (found - exact) ** 2
    cosines = (found * exact).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(exact, axis=-1)
    channels = np.sort(squared.mean(0) / exact.var(0))
    lost = reconstruction(codec, vectors)
    assert lost.relative_error == pytest.approx(squared.sum() / (exact**2).sum(), rel=1e-9)
    assert lost.cosine == pytest.approx(cosines.mean(), rel=1e-9)
    assert channels[7] <= lost.channel_error * (1 + 1e-9) <= channels[8] * (1 + 2e-9)


def test_reconstruction_of_vectors_without_length_or_variance_is_a_number() -> None:
    codec = Int8Vectors(name="h", width=3)
    assert reconstruction(codec, torch.zeros(4, 3)) == (0.0, 1.0, 0.0)
    assert reconstruction(codec, torch.ones(1, 3)).channel_error == 0.0
    one_varies = torch.ones(4, 3)
    one_varies[:, 1] = torch.tensor([1.0, 0.3, 0.2, 0.9])
    squared = (codec.decode(codec.encode(one_varies)) - one_varies).double()[:, 1].square().mean()
    variance = one_varies[:, 1].double().var(correction=0)
    assert reconstruction(codec, one_varies).channel_error == pytest.approx((squared / variance).item(), rel=1e-9)
