//! From a weight's blocks to panels, once for each weight.
//!
//! Of each row a block's levels are taken apart, four of them at a time are put beside those of the other rows, and their bits are
//! packed again. All loops have constant lengths, for compilers to vectorise: the memory that is written costs more than they do.

use crate::format::{Format, Weight};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::quant::six_bits;

use super::{BLOCK, Kind, LEVELS, PANEL, Scales};

/// Bytes of a weight `[rows, cols]` in panels; `None` if the format stays in its blocks, because it is not whole numbers times a scale.
///
/// NF4 is such a one: its 16 levels are quantiles of a normal distribution. Bytes would move them by up to 1/254 of the largest value
/// of a block, a twentieth of the distance of the two that are closest, and the promise that weights are exact would go; two bytes a level
/// would keep them to 1/65000 and cost twice the products.
pub fn repacked_bytes(format: Format, rows: usize, cols: usize) -> Option<usize> {
    let kind = Kind::of(format)?;
    Some(rows.div_ceil(PANEL) * (cols / kind.unit) * kind.unit_bytes())
}

/// Writes `weight` in panels to `out`, of exactly [`repacked_bytes`] bytes.
///
/// # Panics
/// When a length does not match, or the format cannot be repacked.
#[track_caller]
pub fn repack(pool: &Pool, weight: &Weight<'_>, out: &mut [u8]) {
    weight.check();
    let kind = Kind::of(weight.format).expect("the format can be repacked");
    assert_eq!(Some(out.len()), repacked_bytes(weight.format, weight.rows, weight.cols), "panels do not match the weight");
    if out.is_empty() {
        return;
    }
    let panel_bytes = weight.cols / kind.unit * kind.unit_bytes();
    pool.run_pieces(out, panel_bytes, |panel, out| repack_panel(pool.isa(), kind, weight, panel * PANEL, out));
}

fn repack_panel(isa: Isa, kind: Kind, weight: &Weight<'_>, first: usize, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        return vector(isa, kind, weight, first, out);
    }
    let _ = isa;
    repack_with(kind, weight, first, out);
}

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector<S>(_s, kind: Kind, weight: &Weight<'_>, first: usize, out: &mut [u8]) {
        repack_with(kind, weight, first, out);
    }
}

/// Levels of a block of a row, in order.
type Codes = [u8; 256];

/// A panel of the rows from `first` on.
#[inline(always)]
fn repack_with(kind: Kind, weight: &Weight<'_>, first: usize, out: &mut [u8]) {
    let block_bytes = weight.format.block_bytes();
    let mut codes = [[0; 256]; PANEL];
    let rows: [Option<&[u8]>; PANEL] = std::array::from_fn(|row| (first + row < weight.rows).then(|| weight.row(first + row)));
    for (index, out) in out.chunks_exact_mut(kind.unit_bytes()).enumerate() {
        let (scales, levels) = out.split_at_mut(kind.scale_bytes());
        // Rows past the end are zeros, whatever their levels.
        if rows[PANEL - 1].is_none() {
            scales.fill(0);
        }
        for (row, (bytes, codes)) in rows.iter().zip(&mut codes).enumerate() {
            if let Some(bytes) = bytes {
                let block = &bytes[index * block_bytes..][..block_bytes];
                take_scales(kind, block, row, scales);
                take_codes(kind.format, block, codes);
            }
        }
        for (block, out) in levels.chunks_exact_mut(kind.level_bytes()).enumerate() {
            let mut levels = [0; LEVELS];
            for (row, codes) in codes.iter().enumerate() {
                for step in 0..BLOCK / 4 {
                    levels[step * 4 * PANEL + row * 4..][..4].copy_from_slice(&codes[block * BLOCK + step * 4..][..4]);
                }
            }
            fold(kind, &levels, out);
        }
    }
}

/// Copies the scales of one row's block to their places.
#[inline(always)]
fn take_scales(kind: Kind, block: &[u8], row: usize, out: &mut [u8]) {
    let mut halves = |place: usize, at: usize| out[2 * (place * PANEL + row)..][..2].copy_from_slice(&block[at..at + 2]);
    match kind.format {
        Format::Q2K => (halves(0, 80), halves(1, 82)),
        Format::Q3K => (halves(0, 108), ()),
        Format::Q6K => (halves(0, 208), ()),
        _ if kind.scales == Scales::Plain => (halves(0, 0), ()),
        _ => (halves(0, 0), halves(1, 2)),
    };
    let groups = kind.blocks() * kind.groups;
    let mut put = |line: usize, byte: u8| out[line * PANEL + row] = byte;
    match kind.format {
        Format::Q2K => (0..groups).for_each(|g| put(4 + g, block[g])),
        Format::Q3K => {
            for g in 0..groups {
                // Four bits in the first eight bytes, two in the last four.
                let (low, high) = (block[96 + g % 8] >> (g / 8 * 4), block[104 + g % 4] >> (g / 4 * 2));
                put(2 + g, (low & 15 | (high & 3) << 4).wrapping_sub(32));
            }
        }
        Format::Q6K => (0..groups).for_each(|g| put(2 + g, block[192 + g])),
        Format::Q4K | Format::Q5K => {
            for g in 0..groups {
                let (s, t) = six_bits(&block[4..16], g);
                put(4 + 2 * g, s);
                put(5 + 2 * g, t);
            }
        }
        _ => {}
    }
}

/// Takes a block's levels apart, in the order of `k`.
#[inline(always)]
fn take_codes(format: Format, block: &[u8], out: &mut Codes) {
    match format {
        Format::Q8_0 => out.iter_mut().zip(&block[2..34]).for_each(|(out, q)| *out = q ^ 128),
        Format::Q4_0 | Format::Iq4Nl => nibbles::<16>(&block[2..], out),
        Format::Q4_1 => nibbles::<16>(&block[4..], out),
        Format::Q5_0 => {
            nibbles::<16>(&block[6..], out);
            fifth_bits(&block[2..6], out);
        }
        Format::Q5_1 => {
            nibbles::<16>(&block[8..], out);
            fifth_bits(&block[4..8], out);
        }
        Format::Q2K => pairs(&block[16..80], |out, bits| *out = bits, out),
        Format::Q3K => {
            pairs(&block[32..96], |out, bits| *out = bits, out);
            high_bits::<2>(&block[..32], out);
        }
        Format::Q4K => nibbles::<32>(&block[16..], out),
        Format::Q5K => {
            nibbles::<32>(&block[48..], out);
            high_bits::<4>(&block[16..48], out);
        }
        Format::Q6K => {
            nibbles::<64>(&block[..128], out);
            pairs(&block[128..192], |out, bits| *out |= bits << 4, out);
        }
        Format::F32 | Format::F16 | Format::BF16 | Format::Nf4 => unreachable!("`Kind::of` has no panels of it"),
    }
}

/// Stretches of `2 LEN` levels: the low halves of `LEN` bytes, then the high ones.
#[inline(always)]
fn nibbles<const LEN: usize>(bytes: &[u8], out: &mut Codes) {
    let (stretches, _) = bytes.as_chunks::<LEN>();
    for (bytes, out) in stretches.iter().zip(out.chunks_exact_mut(2 * LEN)) {
        let (low, high) = out.split_at_mut(LEN);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }
}

/// Bit `i` of a little-endian word is the fifth of level `i`.
#[inline(always)]
fn fifth_bits(word: &[u8], out: &mut Codes) {
    let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    for (i, out) in out[..BLOCK].iter_mut().enumerate() {
        *out |= ((word >> i & 1) << 4) as u8;
    }
}

/// Halves of 128 levels: 32 bytes that hold four each, 32 apart.
#[inline(always)]
fn pairs(bytes: &[u8], put: impl Fn(&mut u8, u8), out: &mut Codes) {
    for (bytes, out) in bytes.chunks_exact(32).zip(out.chunks_exact_mut(128)) {
        for (part, out) in out.chunks_exact_mut(32).enumerate() {
            out.iter_mut().zip(bytes).for_each(|(out, byte)| put(out, byte >> (2 * part) & 3));
        }
    }
}

/// The bits of 32 bytes are those of the 32 levels of one eighth, from the lowest on; they go to bit `AT`.
#[inline(always)]
fn high_bits<const AT: usize>(bytes: &[u8], out: &mut Codes) {
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        out.iter_mut().zip(bytes).for_each(|(out, byte)| *out |= (byte >> part & 1) << AT);
    }
}

/// Packs the bits of levels as the module [`super`] describes.
#[inline(always)]
fn fold(kind: Kind, levels: &[u8; LEVELS], out: &mut [u8]) {
    let (low, high) = out.split_at_mut(LEVELS * kind.low / 8);
    match kind.low {
        2 => plane::<2>(levels, 0, low),
        4 => plane::<4>(levels, 0, low),
        _ => low.copy_from_slice(levels),
    }
    match kind.high {
        0 => {}
        1 => plane::<1>(levels, kind.low, high),
        _ => plane::<2>(levels, kind.low, high),
    }
}

/// Packs `BITS` bits of each level, from bit `shift` on.
#[inline(always)]
fn plane<const BITS: usize>(levels: &[u8; LEVELS], shift: usize, out: &mut [u8]) {
    let mask = ((1u16 << BITS) - 1) as u8;
    let stride = LEVELS * BITS / 8;
    out.fill(0);
    for part in 0..8 / BITS {
        for (out, level) in out.iter_mut().zip(&levels[part * stride..]) {
            *out |= (level >> shift & mask) << (part * BITS);
        }
    }
}
