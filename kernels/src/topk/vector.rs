//! The scan for candidates compiled for wide vectors.

use crate::simd::simd_fn;

simd_fn! {
    /// As [`super::list`].
    pub(super) fn list<S>(_s, x: &[f32], out: &mut [i32]) {
        super::list(x, out);
    }
}
