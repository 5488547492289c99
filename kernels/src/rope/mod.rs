//! Rotary position embedding (Su et al. 2021) over `[n, heads * head_dim]`.
//!
//! Angles are `position as f32 * inv_freq`, rounded to `f32` as the reference models do; sine
//! and cosine of that angle are within `2e-7` absolute, whatever its size. They are computed
//! once for each token and used by all its heads. The output is overwritten and may be the
//! input itself.
//!
//! A token may have several positions (time, height and width of a patch of an image): then each
//! pair of dimensions says which of them turns it.

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod vector;

use std::ops::Range;

use crate::gemm::scratch::with_scratch;
use crate::pool::Pool;
use crate::stream;

/// Elements that are worth a task of their own.
const GRAIN: usize = 16 * 1024;

/// Which dimensions of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `i` with `i + rotary_dim / 2`.
    Halves,
    /// `2 i` with `2 i + 1`.
    Interleaved,
}

/// Sizes and angles of a rotation.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Tokens.
    pub n: usize,
    /// Heads of a token.
    pub heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Leading dimensions of a head that rotate, an even number; the others are copied.
    pub rotary_dim: usize,
    /// Which dimensions rotate together.
    pub layout: Layout,
    /// `rotary_dim / 2` radians for each position.
    pub inv_freq: &'a [f32],
    /// Factor on sine and cosine (YaRN's attention scaling); usually one.
    pub attn_scale: f32,
    /// Rotate backwards: the gradient of the rotation.
    pub inverse: bool,
    /// Which of a token's positions turns each pair; empty where a token has one.
    pub rows: &'a [u8],
}

/// Rotates every head of token `i` by its positions, `positions[r * n + i]` for row `r`.
#[track_caller]
pub fn rope(pool: &Pool, rope: Rope<'_>, positions: &[i32], x: &[f32], out: &mut [f32]) {
    let len = rope.n * rope.heads * rope.head_dim;
    assert!(x.len() == len && out.len() == len, "length of an operand of rope");
    // SAFETY: lengths are checked and the borrows exclude overlap.
    unsafe { rope_raw(pool, rope, positions, x.as_ptr(), out.as_mut_ptr()) }
}

/// [`rope()`] on pointers, in place where they are equal.
///
/// # Safety
/// `x` is readable and `out` writable for `n * heads * head_dim` floats; they are equal or do
/// not overlap.
#[track_caller]
pub unsafe fn rope_raw(pool: &Pool, rope: Rope<'_>, positions: &[i32], x: *const f32, out: *mut f32) {
    assert!(
        rope.rotary_dim <= rope.head_dim && rope.rotary_dim.is_multiple_of(2),
        "rotary_dim must be even and at most head_dim"
    );
    let pairs = rope.rotary_dim / 2;
    assert_eq!(rope.inv_freq.len(), pairs, "number of frequencies");
    assert!(rope.rows.is_empty() || rope.rows.len() == pairs, "one row of positions for each pair");
    let last = rope.rows.iter().max().map_or(0, |&row| usize::from(row));
    assert!(positions.len() >= (last + 1) * rope.n && (last > 0 || positions.len() == rope.n), "number of positions");
    let width = rope.heads * rope.head_dim;
    let steepest = rope.inv_freq.iter().fold(0.0f32, |a, f| a.max(f.abs()));
    // Past the caches only whole lines go.
    let part = if rope.layout == Layout::Halves { pairs } else { rope.rotary_dim };
    let lines = rope.head_dim.is_multiple_of(16) && part.is_multiple_of(16);
    let past = lines && stream::is_large(pool.isa(), rope.n * width, out, &[x]);
    let per_task = (stream::grain(GRAIN, rope.n * width) / width.max(1)).max(1);
    let data = Buffers { x, out };
    pool.run(rope.n.div_ceil(per_task), &|task| {
        let data = &data;
        let tokens = Tokens { tokens: task * per_task..rope.n.min((task + 1) * per_task), positions, x: data.x, out: data.out };
        with_scratch(7 * pairs, |scratch| {
            // SAFETY: tokens lie inside both buffers; the input is read only by this task if it is also the output.
            unsafe {
                match pool.isa() {
                    #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
                    isa if isa.is_wide() => vector::tokens(isa, past, steepest, &rope, tokens, scratch),
                    _ => scalar::tokens(&rope, tokens, scratch),
                }
            }
        });
        if past {
            stream::fence();
        }
    });
}

/// Tokens of one task, and the buffers of all.
struct Tokens<'a> {
    tokens: Range<usize>,
    positions: &'a [i32],
    x: *const f32,
    out: *mut f32,
}

/// The position of each pair of a token; returns the farthest.
#[inline(always)]
fn places(rope: &Rope<'_>, positions: &[i32], token: usize, at: &mut [f32]) -> f32 {
    if rope.rows.is_empty() {
        at.fill(positions[token] as f32);
        return (positions[token] as f32).abs();
    }
    at.iter_mut().zip(rope.rows).for_each(|(at, &row)| *at = positions[usize::from(row) * rope.n + token] as f32);
    at.iter().fold(0.0f32, |a, at| a.max(at.abs()))
}

/// Shared by tasks that touch disjoint tokens.
struct Buffers {
    x: *const f32,
    out: *mut f32,
}

// SAFETY: tasks access disjoint tokens.
unsafe impl Sync for Buffers {}
