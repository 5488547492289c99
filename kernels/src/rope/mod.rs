//! Rotary position embedding (Su et al. 2021) over `[n, heads * head_dim]`.
//!
//! Angles are `position as f32 * inv_freq`, rounded to `f32` as the reference models do; sine
//! and cosine of that angle are within `2e-7` absolute, whatever its size. They are computed
//! once for each token and used by all its heads. The output is overwritten and may be the
//! input itself. The rotation is plain arithmetic that the compiler vectorizes at the pool's
//! level: it moves far more bytes than it computes.

mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vector;

use crate::isa::Isa;
use crate::pool::Pool;

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
}

/// Rotates every head of token `i` by `positions[i]`.
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
    assert_eq!(positions.len(), rope.n, "number of positions");
    assert!(
        rope.rotary_dim <= rope.head_dim && rope.rotary_dim.is_multiple_of(2),
        "rotary_dim must be even and at most head_dim"
    );
    assert_eq!(rope.inv_freq.len(), rope.rotary_dim / 2, "number of frequencies");
    let width = rope.heads * rope.head_dim;
    let per_task = (4096 / width.max(1)).max(1);
    let data = Buffers { x, out };
    pool.run(rope.n.div_ceil(per_task), &|task| {
        let data = &data;
        // Reused by all tokens of the task; at most a few hundred floats.
        let mut angles = vec![(0.0, 0.0); rope.rotary_dim / 2];
        let range = task * per_task..rope.n.min((task + 1) * per_task);
        for (token, &position) in range.clone().zip(&positions[range]) {
            // SAFETY: the token lies inside both buffers; the input is read only by this task
            // if it is also the output.
            unsafe {
                let (x, out) = (data.x.add(token * width), data.out.add(token * width));
                match pool.isa() {
                    #[cfg(target_arch = "x86_64")]
                    isa @ (Isa::Avx2 | Isa::Avx512) => {
                        vector::token(isa, &rope, position, &mut angles, x, out);
                    }
                    _ => scalar::token(&rope, position, &mut angles, x, out),
                }
            }
        }
    });
}

/// Shared by tasks that touch disjoint tokens.
struct Buffers {
    x: *const f32,
    out: *mut f32,
}

// SAFETY: tasks access disjoint tokens.
unsafe impl Sync for Buffers {}
