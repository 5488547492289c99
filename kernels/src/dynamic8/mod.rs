//! Numbers in 8 bits under a dynamic map, with a scale for each block: how optimizers keep their moments in a quarter of the memory
//! (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization").
//!
//! A block of [`BLOCK`] numbers is divided by its largest magnitude, and each quotient becomes the number of the nearest entry of a map of
//! 256 values whose gaps grow with the magnitude: seven decades, of which each has twice the entries of the one below. Maps are those of
//! bitsandbytes' `create_dynamic_map`, bit for bit.
//!
//! Codes are those of bitsandbytes' `quantize_blockwise` in torch: the quotient is `x * (1 / absmax)` in f32, of two entries
//! equally near the lower one counts, and NaN is code 0. The largest magnitude of a block that holds a NaN
//! is NaN, so that a broken gradient is not lost. An error is at most half the gap between two entries: `0.0071 absmax` of the signed
//! map, `0.0036 absmax` of the unsigned one. Quantization and back is bitwise the same at every level.

mod scalar;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) use scalar::inverse;
pub(crate) use scalar::{decode, encode};
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) use tables::Buckets;

use crate::pool::{Disjoint, Pool};

/// Numbers that share a scale.
pub const BLOCK: usize = 256;

/// Words of a cache line.
const LINE: usize = 16;

/// Blocks of one task.
const GRAIN: usize = 128;

/// Which numbers a map has entries for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Map {
    /// Both signs.
    Signed,
    /// None below zero, and twice as many above.
    Unsigned,
}

impl Map {
    /// Both maps.
    pub const ALL: [Map; 2] = [Map::Signed, Map::Unsigned];

    /// The entries in ascending order.
    pub fn values(self) -> &'static [f32; 256] {
        &tables::of(self).values
    }

    /// Number of the entry nearest to `x`, the lower one of two; 0 for NaN.
    pub(crate) fn nearest(self, x: f32) -> u8 {
        tables::of(self).nearest(x)
    }

    /// What finds the nearest entries of a vector.
    pub(crate) fn buckets(self) -> &'static Buckets {
        &tables::of(self).buckets
    }
}

/// Scales of so many numbers.
pub fn blocks(len: usize) -> usize {
    len.div_ceil(BLOCK)
}

/// Numbers in 8 bits, to be changed.
#[derive(Debug)]
pub struct PackedMut<'a> {
    /// Which map.
    pub map: Map,
    /// Numbers of entries.
    pub codes: &'a mut [u8],
    /// Largest magnitude of each block.
    pub absmax: &'a mut [f32],
}

/// Word that the codes of `len` numbers begin at, in [`words`]: the first whole cache line past the scales.
pub fn codes_at(len: usize) -> usize {
    blocks(len).next_multiple_of(LINE)
}

/// Words of four bytes that scales and codes of `len` numbers take together.
pub fn words(len: usize) -> usize {
    codes_at(len) + len.div_ceil(4)
}

impl<'a> PackedMut<'a> {
    /// Scales and codes of `len` numbers in the first [`words`] of `data`.
    ///
    /// # Panics
    /// When there are fewer.
    #[track_caller]
    pub fn of(map: Map, len: usize, data: &'a mut [u32]) -> PackedMut<'a> {
        let (scales, codes) = data[..words(len)].split_at_mut(codes_at(len));
        // SAFETY: words are aligned for floats and bytes, and hold as many; every bit pattern is one of either.
        let (absmax, codes) = unsafe {
            (
                std::slice::from_raw_parts_mut(scales.as_mut_ptr().cast::<f32>(), blocks(len)),
                std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast::<u8>(), len),
            )
        };
        PackedMut { map, codes, absmax }
    }

    /// # Panics
    /// When there are not `len` numbers in as many blocks as they take.
    #[track_caller]
    pub(crate) fn check(&self, len: usize) {
        assert!(self.codes.len() == len && self.absmax.len() == blocks(len), "length of numbers in 8 bits");
    }
}

/// Rounds `x` to 8 bits.
///
/// # Panics
/// When lengths do not fit.
#[track_caller]
pub fn quantize(pool: &Pool, x: &[f32], out: PackedMut<'_>) {
    out.check(x.len());
    let PackedMut { map, codes, absmax } = out;
    let (codes, absmax) = (Disjoint::new(codes), Disjoint::new(absmax));
    each(pool, x.len(), &|start, len| {
        // SAFETY: blocks of a task are its own.
        let (codes, absmax) = unsafe { (codes.slice(start, len), absmax.slice(start / BLOCK, blocks(len))) };
        let x = &x[start..start + len];
        for ((x, codes), absmax) in x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(absmax) {
            *absmax = match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() && x.len() == BLOCK => vector::encode(isa, map, x, codes),
                _ => encode(map, x, codes),
            };
        }
    });
}

/// `out` becomes the numbers that codes and scales stand for.
///
/// # Panics
/// When lengths do not fit.
#[track_caller]
pub fn dequantize(pool: &Pool, map: Map, codes: &[u8], absmax: &[f32], out: &mut [f32]) {
    assert!(codes.len() == out.len() && absmax.len() == blocks(out.len()), "length of numbers in 8 bits");
    let out = Disjoint::new(out);
    each(pool, codes.len(), &|start, len| {
        // SAFETY: blocks of a task are its own.
        let out = unsafe { out.slice(start, len) };
        let codes = codes[start..start + len].chunks(BLOCK);
        for ((out, codes), &absmax) in out.chunks_mut(BLOCK).zip(codes).zip(&absmax[start / BLOCK..]) {
            match pool.isa() {
                #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                isa if isa.is_wide() && out.len() == BLOCK => vector::decode(isa, map, codes, absmax, out),
                _ => decode(map, codes, absmax, out),
            }
        }
    });
}

/// Calls `body` with the start and the length of whole blocks (the last may be cut short).
fn each(pool: &Pool, len: usize, body: &(dyn Fn(usize, usize) + Sync)) {
    let grain = GRAIN * BLOCK;
    pool.run(len.div_ceil(grain), &|task| body(task * grain, grain.min(len - task * grain)));
}
