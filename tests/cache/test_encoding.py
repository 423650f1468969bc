import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fmcache.cache.encoding import COMPACT, FAST, SMALL, all_finite, store_of
from fmcache.cache.reader import open_cache
from fmcache.cache.verify import disk_bytes
from fmcache.cache.writer import open_writer, write_shard
from fmcache.errors import CacheMismatch, SpecError, TokensOverflow
from fmcache.specs import Recipe, read_recipe


def identity_of(store):
    return {"format": 1, "kind": "tokens", "tiles": {"t": "hash"}, "store": store}


def write(path, store, values):
    spec = store_of(store)
    item = values.shape[1:]
    opened = open_writer(
        path, "tokens", identity_of(store), item, spec.dtype, {"t": len(values)}, {}, compressor=spec.compressor
    )
    with opened as writer:
        writer.begin()
        for shard in writer.missing():
            write_shard(path, "tokens", shard, spec.rounded(values[shard.first : shard.stop].astype(spec.dtype)))
        writer.seal()


def slowly_rounded(value, bits):
    """The nearest number with `bits` bits after the leading one, ties to even, by counting in float64."""
    mantissa, exponent = np.frexp(np.float64(value))
    return float(np.ldexp(np.rint(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent))


@given(
    arrays.arrays(np.float16, 20, elements=st.floats(-60000, 60000, width=16)).map(
        lambda a: np.where(np.abs(a) < 1e-4, np.float16(0), a)  # numbers below the normal range have fewer bits
    ),
    st.integers(1, 9),
)
def test_rounding_equals_slow_arithmetic(values, bits):
    fast = store_of(f"float16-round{bits}").rounded(values)
    slow = [slowly_rounded(value, bits) for value in values]
    with np.errstate(over="ignore"):
        assert fast.dtype == np.float16
        assert np.array_equal(fast, np.array(slow).astype(np.float16))
    finite = np.isfinite(fast)
    assert (np.abs(fast - values.astype(float))[finite] <= np.abs(values.astype(float))[finite] / 2 ** (bits + 1)).all()


def test_rounding_known_numbers_to_two_bits():
    values = np.array([1.0, 1.125, 1.13, 1.375, -1.13, 0.0, 1.99], "float32")
    expected = [1.0, 1.0, 1.25, 1.5, -1.25, 0.0, 2.0]  # 1.125 and 1.375 lie halfway: to the even neighbour
    assert store_of("float32-round2").rounded(values).tolist() == expected


def test_plain_types_are_left_alone_and_input_is_never_changed():
    values = np.linspace(-3, 3, 50, dtype="float16")
    before = values.copy()
    assert store_of("float16").rounded(values) is values
    assert not np.array_equal(store_of(COMPACT).rounded(values), before)
    assert np.array_equal(values, before)


@given(
    arrays.arrays(np.float16, (2, 3), elements=st.floats(width=16, allow_infinity=True, allow_nan=True)),
    st.sampled_from(["float16", "float32"]),
)
def test_fast_tests_for_nan_and_infinity_equal_those_of_numpy(values, dtype):
    values = values.astype(dtype)
    assert all_finite(values) == np.isfinite(values).all()
    assert all_finite(values[:0])


@pytest.mark.parametrize("nan_bits", [0x7FFF, 0x7E00, 0xFFFF])
def test_a_nan_of_any_bits_stays_one_and_is_refused_by_the_writer(tmp_path, nan_bits):
    values = np.zeros((1, 2, 2, 2), "float16")
    values.view("uint16")[0, 1, 1, 1] = nan_bits
    assert np.isnan(store_of(COMPACT).rounded(values)).sum() == 1
    with pytest.raises(TokensOverflow):
        write(tmp_path / "toy.zarr", COMPACT, values)


def test_a_value_that_rounds_beyond_the_range_is_refused_not_stored_as_infinite(tmp_path):
    values = np.full((1, 2, 2, 2), 65504, "float16")
    write(tmp_path / "plain.zarr", "float16", values)
    with pytest.raises(TokensOverflow, match="store: float32"):
        write(tmp_path / "rounded.zarr", COMPACT, values)


@pytest.mark.parametrize("store", ["float32", "float16", COMPACT, "float32-round7"])
def test_any_zarr_reader_gets_the_rounded_values_and_other_stores_are_refused_by_name(tmp_path, store):
    tokens = np.random.default_rng(0).standard_normal((3, 4, 5, 5)).astype("float32")
    write(tmp_path / "toy.zarr", store, tokens)
    spec = store_of(store)
    expected = spec.rounded(tokens.astype(spec.dtype))
    assert np.array_equal(zarr.open_group(tmp_path / "toy.zarr", mode="r")["tokens"][0], expected)
    assert np.array_equal(open_cache(tmp_path / "toy.zarr", "tokens", identity_of(store)).read("t", 0, 3), expected)
    with pytest.raises(CacheMismatch, match="store: expected"):
        open_cache(tmp_path / "toy.zarr", "tokens", identity_of("float16-round3"))


def test_rounded_caches_are_smaller_and_compressed_harder(tmp_path):
    tokens = np.random.default_rng(0).standard_normal((4, 64, 32, 32)).astype("float32")
    share = {}
    for store in ("float32", "float16", "float16-round7", COMPACT):
        write(tmp_path / f"{store}.zarr", store, tokens)
        share[store] = disk_bytes(tmp_path / f"{store}.zarr") / tokens.nbytes
    assert share[COMPACT] < share["float16-round7"] < share["float16"] < share["float32"]
    assert share[COMPACT] < 0.32
    metadata = (tmp_path / f"{COMPACT}.zarr" / "tokens" / "zarr.json").read_text()
    assert '"zstd"' in metadata
    assert (store_of("float16").compressor, store_of(COMPACT).compressor) == (FAST, SMALL)


def test_a_cache_goes_on_with_the_compressor_it_began_with(tmp_path):
    path, values = tmp_path / "toy.zarr", np.ones((2, 2, 2, 2), "float16")
    write(path, "float16", values)
    with open_writer(path, "tokens", identity_of("float16"), (2, 2, 2), "float16", {"t": 3}, {}, compressor=SMALL) as w:
        w.begin()
        write_shard(path, "tokens", w.missing()[0], np.ones((3, 2, 2, 2), "float16"))
        w.seal()
    assert '"zstd"' not in (path / "tokens" / "zarr.json").read_text()
    assert open_cache(path, "tokens", {}).read("t", 0, 3).sum() == 24


@pytest.mark.parametrize("store", ["float64", "float16-round0", "float16-round10", "float32-round20", "int8", "round5"])
def test_a_recipe_refuses_a_store_that_is_none_and_says_what_there_is(tmp_path, store):
    (tmp_path / "r.yaml").write_text(f"store: {store}\n")
    with pytest.raises(SpecError, match="float16-round5"):
        read_recipe(tmp_path / "r.yaml")


def test_a_recipe_takes_every_store_that_has_a_ratio_to_expect():
    ratios = [
        store_of(Recipe(store=s).store).expected_ratio() for s in ("float16-round4", COMPACT, "float16", "float32")
    ]
    assert ratios == sorted(ratios)
    assert ratios[1] <= 0.30 < ratios[2] <= 0.47
