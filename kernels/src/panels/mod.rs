//! Panels: 16 rows of a weight side by side, and what they become in cache.
//!
//! A frozen weight is repacked once ([`repack`]) and read in panels from then on: by products in whole numbers ([`crate::linear::int8`]), and
//! in `f32` by all that take a [`crate::format::Weight`]: linear layers and their gradients, those with an adapter, of experts, losses of a head.
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
//!
//! **Signed levels.** Where a format has no minimum, its level of `b` bits is centred. It is widened to the left end of a byte,
//! `2^(8-b) (q - zero) + 128`, so that one offset serves all formats, and the scale shrinks by `2^(8-b)`, which rounds nothing.

use crate::format::Format;
use crate::isa::Isa;
use crate::quant::IQ4_NL;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod decode;
mod repack;
mod streams;

pub(crate) use decode::{Column, Decoded, FEW};
pub use repack::{repack, repacked_bytes};
pub(crate) use streams::{AHEAD, STREAMS, TASK_BYTES, share_out, streams};

/// Values of `k` in a block, which share a scale or have one for each half.
pub(crate) const BLOCK: usize = 32;

/// Rows of a panel.
pub const PANEL: usize = 16;

/// Levels of 32 values of all rows of a panel.
pub(crate) const LEVELS: usize = BLOCK * PANEL;

/// Blocks whose sums are added up before they are added to those of others, where blocks have two groups: those of a unit.
pub(crate) const SUMMED: usize = 8;

/// 32 values of all rows of a panel, ready to be multiplied.
#[repr(C, align(64))]
pub(crate) struct Block {
    /// Signed ones have 128 added, but not at [`Isa::Amx`], where there are products of signed bytes.
    pub(crate) levels: [u8; LEVELS],
    /// By group of 16, or all in the first.
    pub(crate) scales: [[f32; PANEL]; 2],
    /// As the scales, for levels that are not signed.
    pub(crate) minima: [[f32; PANEL]; 2],
}

impl Block {
    /// Zeros.
    pub(crate) const ZERO: Block = Block { levels: [0; LEVELS], scales: [[0.0; PANEL]; 2], minima: [[0.0; PANEL]; 2] };

    /// Size in floats.
    pub(crate) const WORDS: usize = size_of::<Block>() / 4;

    /// Blocks in aligned scratch memory.
    pub(crate) fn of(words: &mut [f32]) -> &mut [Block] {
        assert!(words.as_ptr().cast::<Block>().is_aligned(), "scratch starts at a cache line");
        // SAFETY: aligned by the check, whole blocks, and any bit pattern is a block.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() / Block::WORDS) }
    }
}

/// How a format's scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scales {
    /// `d`.
    Plain,
    /// `d` and a minimum `m`.
    Affine,
    /// `d s`, `s` a signed byte of each group.
    Signed,
    /// `d s` and a minimum `-m t`, in a byte each of each group.
    Pairs,
    /// The same in the low and the high half of one byte.
    Nibbles,
}

/// How a format is laid out and multiplied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) format: Format,
    /// Values of `k` in a unit.
    pub(crate) unit: usize,
    /// Bits of a level: the low ones, and those stored apart.
    pub(crate) low: usize,
    pub(crate) high: usize,
    /// Groups with scales of their own in 32 values.
    pub(crate) groups: usize,
    /// Levels are signed and have no minimum.
    pub(crate) signed: bool,
    pub(crate) scales: Scales,
}

impl Kind {
    /// `None` for formats that have no panels.
    pub(crate) const fn of(format: Format) -> Option<Kind> {
        let (unit, low, high, groups, scales) = match format {
            Format::Q8_0 => (32, 8, 0, 1, Scales::Plain),
            Format::Q4_0 | Format::Iq4Nl => (32, 4, 0, 1, Scales::Plain),
            Format::Q4_1 => (32, 4, 0, 1, Scales::Affine),
            Format::Q5_0 => (32, 4, 1, 1, Scales::Plain),
            Format::Q5_1 => (32, 4, 1, 1, Scales::Affine),
            Format::Q2K => (256, 2, 0, 2, Scales::Nibbles),
            Format::Q3K => (256, 2, 1, 2, Scales::Signed),
            Format::Q4K => (256, 4, 0, 1, Scales::Pairs),
            Format::Q5K => (256, 4, 1, 1, Scales::Pairs),
            Format::Q6K => (256, 4, 2, 2, Scales::Signed),
            Format::F32 | Format::F16 | Format::BF16 | Format::Nf4 => return None,
        };
        let signed = matches!(scales, Scales::Plain | Scales::Signed);
        Some(Kind { format, unit, low, high, groups, signed, scales })
    }

    /// Bits of a level.
    pub(crate) const fn bits(self) -> usize {
        self.low + self.high
    }

    /// Blocks of 32 in a unit.
    pub(crate) const fn blocks(self) -> usize {
        self.unit / BLOCK
    }

    /// Bytes before the levels of a unit.
    pub(crate) const fn scale_bytes(self) -> usize {
        let groups = self.blocks() * self.groups;
        PANEL
            * match self.scales {
                Scales::Plain => 2,
                Scales::Affine => 4,
                Scales::Signed => 2 + groups,
                Scales::Pairs => 4 + 2 * groups,
                Scales::Nibbles => 4 + groups,
            }
    }

    /// Bytes of the levels of 32 values.
    pub(crate) const fn level_bytes(self) -> usize {
        LEVELS * self.bits() / 8
    }

    /// Bytes of a unit of a panel.
    pub(crate) const fn unit_bytes(self) -> usize {
        self.scale_bytes() + self.blocks() * self.level_bytes()
    }

    /// Levels are indices into [`TABLE`].
    pub(crate) const fn is_table(self) -> bool {
        matches!(self.format, Format::Iq4Nl)
    }

    /// Bits to the right of a level once it is widened: signed ones stand at the left end of a byte.
    pub(crate) const fn below(self) -> usize {
        if self.signed && !self.is_table() { 8 - self.bits() } else { 0 }
    }

    /// What left-aligning signed levels takes off the scale.
    pub(crate) const fn shrink(self) -> f32 {
        1.0 / (1 << self.below()) as f32
    }
}

/// Widens whole units into blocks: the specification of what panels mean.
pub(crate) fn widen(isa: Isa, kind: Kind, units: &[u8], out: &mut [Block]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level comes from a pool, which has checked it against the CPU.
        Isa::Avx512 => unsafe { avx512::widen(kind, units, out, 128) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Amx => unsafe { avx512::widen(kind, units, out, 0) },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => vector(isa, kind, units, out),
        _ => widen_with(kind, units, out),
    }
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
pub(crate) fn widen_with(kind: Kind, units: &[u8], out: &mut [Block]) {
    for (unit, out) in units.chunks_exact(kind.unit_bytes()).zip(out.chunks_exact_mut(kind.blocks())) {
        let (scales, levels) = unit.split_at(kind.scale_bytes());
        for (index, (bytes, out)) in levels.chunks_exact(kind.level_bytes()).zip(out).enumerate() {
            widen_scales(kind, scales, index, out);
            widen_levels(kind, bytes, &mut out.levels);
        }
    }
}

#[inline(always)]
fn widen_scales(kind: Kind, bytes: &[u8], index: usize, out: &mut Block) {
    let d = halves(bytes).map(|d| d * kind.shrink());
    let m = || halves(&bytes[2 * PANEL..]);
    let line = |at: usize| bytes[at * PANEL..][..PANEL].as_array::<PANEL>().expect("of this length");
    for group in 0..kind.groups {
        let at = index * kind.groups + group;
        match kind.scales {
            Scales::Plain => out.scales[group] = d,
            Scales::Affine => (out.scales[group], out.minima[group]) = (d, m()),
            Scales::Signed => {
                let s = line(2 + at);
                out.scales[group] = std::array::from_fn(|row| d[row] * f32::from(s[row] as i8));
            }
            Scales::Pairs => {
                let (m, s, t) = (m(), line(4 + 2 * at), line(5 + 2 * at));
                out.scales[group] = std::array::from_fn(|row| d[row] * f32::from(s[row]));
                out.minima[group] = std::array::from_fn(|row| -m[row] * f32::from(t[row]));
            }
            Scales::Nibbles => {
                let (m, both) = (m(), line(4 + at));
                out.scales[group] = std::array::from_fn(|row| d[row] * f32::from(both[row] & 15));
                out.minima[group] = std::array::from_fn(|row| -m[row] * f32::from(both[row] >> 4));
            }
        }
    }
}

#[inline(always)]
fn widen_levels(kind: Kind, bytes: &[u8], out: &mut [u8; LEVELS]) {
    if kind.low == 8 {
        return out.copy_from_slice(bytes);
    }
    let (low, high) = bytes.split_at(LEVELS * kind.low / 8);
    match kind.low {
        2 => plane::<2>(low, |out, bits| *out = bits, out),
        _ => plane::<4>(low, |out, bits| *out = bits, out),
    }
    match (kind.low, kind.high) {
        (_, 0) => {}
        (2, _) => plane::<1>(high, |out, bits| *out |= bits << 2, out),
        (_, 1) => plane::<1>(high, |out, bits| *out |= bits << 4, out),
        (_, _) => plane::<2>(high, |out, bits| *out |= bits << 4, out),
    }
    if kind.is_table() {
        out.iter_mut().for_each(|level| *level = TABLE[usize::from(*level & 15)]);
    } else if kind.signed {
        out.iter_mut().for_each(|level| *level <<= kind.below());
    }
}

/// Takes apart bytes that hold `8 / BITS` levels each.
#[inline(always)]
fn plane<const BITS: usize>(bytes: &[u8], put: impl Fn(&mut u8, u8), out: &mut [u8; LEVELS]) {
    let mask = ((1u16 << BITS) - 1) as u8;
    for (part, out) in out.chunks_exact_mut(LEVELS * BITS / 8).enumerate() {
        for (out, byte) in out.iter_mut().zip(bytes) {
            put(out, byte >> (part * BITS) & mask);
        }
    }
}

/// IQ4_NL's levels with 128 added.
pub(crate) const TABLE: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (IQ4_NL[i] as u8) ^ 128;
        i += 1;
    }
    table
};

/// The first 16 halves of `bytes`.
#[inline(always)]
fn halves(bytes: &[u8]) -> [f32; PANEL] {
    let (bytes, _) = bytes[..2 * PANEL].as_chunks::<2>();
    std::array::from_fn(|row| half_to_f32(u16::from_le_bytes(bytes[row])))
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
