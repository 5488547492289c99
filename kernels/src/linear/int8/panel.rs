//! Panels: 16 rows of a weight side by side, and their way into cache.
//!
//! A panel is a sequence of *units*, the shortest stretch of `k` that has scales of its own: 32
//! values, or 256 where a format has blocks of blocks. A unit holds
//!
//! ```text
//! scales     f16 d [16]   f16 m [16]?   then for each group  u8 s [16]   u8 t [16]?
//! levels     for every 32 values of k: the low bits of all levels, then the high bits
//! ```
//!
//! Level `i` of 512 is value `4 (i / 64) + i % 4` of row `i / 4 % 16`. With `b` low bits, byte `j`
//! of `64 b` holds levels `j`, `j + 64 b`, ... from its lowest bits on, so that every shift
//! of a whole vector yields levels in order; high bits likewise. Nothing is lost and
//! little added: Q3_K grows by 4%, Q4_K by 3%, Q5_K by 2%, the others not at all.

use crate::format::{Format, Weight};
use crate::isa::Isa;
use crate::pool::Pool;

use super::rows::BLOCK;

/// Rows of a panel.
pub(super) const PANEL: usize = 16;

/// Levels of 32 values of all rows of a panel.
pub(super) const LEVELS: usize = BLOCK * PANEL;

/// 32 values of all rows of a panel, ready to be multiplied.
#[repr(C, align(64))]
pub(super) struct Block {
    pub(super) levels: [u8; LEVELS],
    /// By group of 16, or all in the first.
    pub(super) scales: [[f32; PANEL]; 2],
    /// As the scales, for levels that are not signed.
    pub(super) minima: [[f32; PANEL]; 2],
}

impl Block {
    /// Size in floats.
    pub(super) const WORDS: usize = size_of::<Block>() / 4;

    /// Blocks in aligned scratch memory.
    pub(super) fn of(words: &mut [f32]) -> &mut [Block] {
        assert!(words.as_ptr().cast::<Block>().is_aligned(), "scratch starts at a cache line");
        // SAFETY: aligned by the check, whole blocks, and any bit pattern is a block.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() / Block::WORDS) }
    }
}

/// How a format's scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    /// `d (q - zero)`.
    Centred { zero: u8 },
    /// `d q + m`.
    Affine,
}

/// How a format is laid out and multiplied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    format: Format,
    /// Values of `k` in a unit.
    pub(super) unit: usize,
    /// Bits of a level: the low ones, and those stored apart.
    low: usize,
    high: usize,
    /// Groups with scales of their own in 32 values.
    pub(super) groups: usize,
    /// Levels are signed bytes without a minimum; otherwise they have [`Kind::bits`] bits.
    pub(super) signed: bool,
    scales: Scales,
}

impl Kind {
    /// `None` for formats that have no panels.
    pub(super) fn of(format: Format) -> Option<Kind> {
        let kind = |low, signed, scales| Kind { format, unit: 32, low, high: 0, groups: 1, signed, scales };
        Some(match format {
            Format::Q8_0 => kind(8, true, Scales::Centred { zero: 0 }),
            Format::Q4_0 => kind(4, false, Scales::Centred { zero: 8 }),
            Format::Q4_1 => kind(4, false, Scales::Affine),
            _ => return None,
        })
    }

    /// Bits of a level.
    pub(super) fn bits(self) -> usize {
        self.low + self.high
    }

    fn scale_bytes(self) -> usize {
        match self.scales {
            Scales::Centred { .. } => 2 * PANEL,
            Scales::Affine => 4 * PANEL,
        }
    }

    /// Bytes of a unit of a panel.
    pub(super) fn unit_bytes(self) -> usize {
        self.scale_bytes() + self.unit / BLOCK * LEVELS * self.bits() / 8
    }
}

/// Bytes of a weight `[rows, cols]` in panels; `None` if the format stays in its blocks, because it is not whole numbers times a scale.
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
    let block_bytes = weight.format.block_bytes();
    pool.run_pieces(out, panel_bytes, |panel, out| {
        let first = panel * PANEL;
        for (index, out) in out.chunks_exact_mut(kind.unit_bytes()).enumerate() {
            let (scales, levels) = out.split_at_mut(kind.scale_bytes());
            scales.fill(0);
            // Rows past the end: zeros, whatever their levels.
            let mut rows = [[0; BLOCK]; PANEL];
            for (row, target) in rows.iter_mut().enumerate().take(weight.rows - first) {
                let block = &weight.row(first + row)[index * block_bytes..][..block_bytes];
                take_scales(kind, block, row, scales);
                for (i, level) in target.iter_mut().enumerate() {
                    *level = level_of(kind.format, block, i);
                }
            }
            fold(kind, &rows, levels);
        }
    });
}

/// Copies the scales of one row's block to their places.
fn take_scales(kind: Kind, block: &[u8], row: usize, out: &mut [u8]) {
    out[2 * row..][..2].copy_from_slice(&block[..2]);
    if kind.scales == Scales::Affine {
        out[2 * (PANEL + row)..][..2].copy_from_slice(&block[2..4]);
    }
}

/// Level `i` of a block.
fn level_of(format: Format, block: &[u8], i: usize) -> u8 {
    let nibble = |bytes: &[u8]| bytes[i % 16] >> (i / 16 * 4) & 15;
    match format {
        Format::Q8_0 => block[2 + i],
        Format::Q4_0 => nibble(&block[2..]),
        Format::Q4_1 => nibble(&block[4..]),
        _ => unreachable!("`Kind::of` has no panels of it"),
    }
}

/// Stores levels in the order of the module's description.
fn fold(kind: Kind, rows: &[[u8; BLOCK]; PANEL], out: &mut [u8]) {
    let level = |i: usize| rows[i / 4 % PANEL][4 * (i / (4 * PANEL)) + i % 4];
    let (low, high) = out.split_at_mut(LEVELS * kind.low / 8);
    let plane = |out: &mut [u8], bits: usize, shift: usize| {
        let mask = ((1u16 << bits) - 1) as u8;
        let stride = out.len();
        for (j, byte) in out.iter_mut().enumerate() {
            *byte = (0..8 / bits).fold(0, |byte, part| byte | (level(j + part * stride) >> shift & mask) << (part * bits));
        }
    };
    plane(low, kind.low, 0);
    if kind.high > 0 {
        plane(high, kind.high, kind.low);
    }
}

/// Widens whole units into blocks.
pub(super) fn widen(isa: Isa, kind: Kind, units: &[u8], out: &mut [Block]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        return vector(isa, kind, units, out);
    }
    let _ = isa;
    widen_with(kind, units, out);
}

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector<S>(_s, kind: Kind, units: &[u8], out: &mut [Block]) {
        widen_with(kind, units, out);
    }
}

/// Loops of constant length over arrays, so that compilers vectorise them.
#[inline(always)]
fn widen_with(kind: Kind, units: &[u8], out: &mut [Block]) {
    let units = units.chunks_exact(kind.unit_bytes());
    match kind.format {
        Format::Q8_0 => {
            for (unit, out) in units.zip(out) {
                halves(unit, &mut out.scales[0]);
                out.levels.copy_from_slice(&unit[2 * PANEL..]);
            }
        }
        Format::Q4_0 => {
            for (unit, out) in units.zip(out) {
                halves(unit, &mut out.scales[0]);
                for (m, s) in out.minima[0].iter_mut().zip(&out.scales[0]) {
                    *m = -8.0 * s;
                }
                nibbles(&unit[2 * PANEL..], &mut out.levels);
            }
        }
        Format::Q4_1 => {
            for (unit, out) in units.zip(out) {
                halves(unit, &mut out.scales[0]);
                halves(&unit[2 * PANEL..], &mut out.minima[0]);
                nibbles(&unit[4 * PANEL..], &mut out.levels);
            }
        }
        _ => unreachable!("`Kind::of` has no panels of it"),
    }
}

#[inline(always)]
fn nibbles(bytes: &[u8], levels: &mut [u8; LEVELS]) {
    let (low, high) = levels.split_at_mut(LEVELS / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&bytes[..LEVELS / 2]) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// The first 16 halves of `bytes`.
#[inline(always)]
fn halves(bytes: &[u8], out: &mut [f32; PANEL]) {
    let (bytes, _) = bytes[..2 * PANEL].as_chunks::<2>();
    for (out, bytes) in out.iter_mut().zip(bytes) {
        *out = half_to_f32(u16::from_le_bytes(*bytes));
    }
}

/// Exact, like the conversion of `half`, but without branches.
#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = (bits & 0x7fff) << 13;
    // Exponents are moved by 112; subnormal ones become normal on the way. The largest stands for infinity and NaN.
    let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7f80_0000;
    let value = if magnitude >= 0x0f80_0000 { special } else { finite };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_convert_as_the_crate_does() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}: {ours} and {theirs}");
        }
    }
}
