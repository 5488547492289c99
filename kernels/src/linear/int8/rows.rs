//! Activations in 8 bits: `m` rows of `k` whole numbers, then a record for every 32 of them.

use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};

/// Activations that share a scale.
pub(super) const BLOCK: usize = 32;

/// What the products need to know of 32 quantized activations `p`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub(super) struct Record {
    /// Scale: `x ≈ d p`. NaN if any of them is not finite.
    pub(super) d: f32,
    /// `d sum(p)`.
    pub(super) sum: f32,
    /// The same for the first and the last 16.
    pub(super) halves: [f32; 2],
    /// `sum(p)`.
    pub(super) whole: i32,
}

const RECORD_WORDS: usize = size_of::<Record>() / 4;

/// Quantized rows, as the kernels see them.
pub(super) struct Rows<'a> {
    /// `[m, k]`.
    pub(super) values: &'a [i8],
    /// `[m, k / 32]`.
    pub(super) records: &'a [Record],
}

impl<'a> Rows<'a> {
    #[track_caller]
    pub(super) fn new(m: usize, k: usize, words: &'a [u32]) -> Rows<'a> {
        assert!(words.len() >= quantized_words(m, k), "quantized activations do not match the batch and the weight");
        let (values, records) = words.split_at(m * k / 4);
        // SAFETY: both consist of words, any bit pattern of which is valid, and lie within the slice by the check.
        unsafe {
            Rows {
                values: std::slice::from_raw_parts(values.as_ptr().cast(), m * k),
                records: std::slice::from_raw_parts(records.as_ptr().cast(), m * k / BLOCK),
            }
        }
    }
}

/// Words that `m` rows of `k` activations take when quantized.
///
/// # Panics
/// When `k` is not a whole number of blocks of 32.
#[track_caller]
pub const fn quantized_words(m: usize, k: usize) -> usize {
    assert!(k.is_multiple_of(BLOCK), "activations are quantized in whole blocks of 32");
    m * (k / 4 + k / BLOCK * RECORD_WORDS)
}

/// Quantizes `x`, `[m, k]`, into `out`, of at least [`quantized_words`] words; the layout is private to this crate.
///
/// # Panics
/// When a length does not match.
#[track_caller]
pub fn quantize_rows(pool: &Pool, m: usize, k: usize, x: &[f32], out: &mut [u32]) {
    assert_eq!(x.len(), m * k, "activations do not match their shape");
    assert!(out.len() >= quantized_words(m, k), "no room for the quantized activations");
    let (values, records) = out[..quantized_words(m, k)].split_at_mut(m * k / 4);
    let (values, records) = (Disjoint::new(values), Disjoint::new(records));
    // Tasks of a few microseconds, of whole blocks.
    const TASK: usize = 1 << 13;
    let tasks = x.len().div_ceil(TASK);
    let isa = pool.isa();
    pool.run(tasks, &|task| {
        let x = &x[task * TASK..x.len().min((task + 1) * TASK)];
        // SAFETY: tasks have words of their own.
        let (values, records) = unsafe {
            let records_from = task * (TASK / BLOCK) * RECORD_WORDS;
            (values.slice(task * TASK / 4, x.len() / 4), records.slice(records_from, x.len() / BLOCK * RECORD_WORDS))
        };
        let (x, _) = x.as_chunks::<BLOCK>();
        let (values, _) = values.as_chunks_mut::<{ BLOCK / 4 }>();
        let (records, _) = records.as_chunks_mut::<RECORD_WORDS>();
        quantize(isa, x, values, records);
    });
}

type Words = [u32; BLOCK / 4];

fn quantize(isa: Isa, x: &[[f32; BLOCK]], values: &mut [Words], records: &mut [[u32; RECORD_WORDS]]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx2 {
        return vector(isa, x, values, records);
    }
    let _ = isa;
    quantize_with(x, values, records);
}

#[cfg(target_arch = "x86_64")]
crate::simd::simd_fn! {
    /// The portable code, compiled with wide instructions.
    fn vector<S>(_s, x: &[[f32; BLOCK]], values: &mut [Words], records: &mut [[u32; RECORD_WORDS]]) {
        quantize_with(x, values, records);
    }
}

/// Quantizes block by block; written so that compilers vectorise it.
#[inline(always)]
fn quantize_with(x: &[[f32; BLOCK]], values: &mut [Words], records: &mut [[u32; RECORD_WORDS]]) {
    /// Below, the reciprocal overflows.
    const TINY: f32 = 1e-36;
    /// Adding 1.5 · 2²³ leaves the nearest whole number, ties to even, in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    for ((x, values), record) in x.iter().zip(values).zip(records) {
        // Bits of magnitudes are ordered as the magnitudes are, NaN above infinity.
        let top = x.iter().fold(0, |top, x| (x.to_bits() & 0x7fff_ffff).max(top));
        let largest = f32::from_bits(top);
        let (d, inverse) = if top >= 0x7f80_0000 {
            (f32::NAN, 0.0)
        } else if largest < TINY {
            (0.0, 0.0)
        } else {
            (largest / 127.0, 127.0 / largest)
        };
        let mut whole = [0i32; BLOCK];
        for (q, x) in whole.iter_mut().zip(x) {
            // Zero in blocks that are not finite, whatever `x`.
            let scaled = if inverse == 0.0 { 0.0 } else { x * inverse };
            *q = (scaled + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
        }
        let mut bytes = [0u8; BLOCK];
        for (byte, q) in bytes.iter_mut().zip(whole) {
            *byte = q as u8;
        }
        let (words, _) = bytes.as_chunks::<4>();
        for (value, word) in values.iter_mut().zip(words) {
            *value = u32::from_ne_bytes(*word);
        }
        let sums = [0, 1].map(|half| whole[half * 16..][..16].iter().sum::<i32>());
        let sum = sums[0] + sums[1];
        let floats = [d, d * sum as f32, d * sums[0] as f32, d * sums[1] as f32].map(f32::to_bits);
        *record = [floats[0], floats[1], floats[2], floats[3], sum as u32];
    }
}
