//! Specification of the mask; the wide levels leave it their ragged ends.

use super::Mask;
use crate::random::philox;

/// # Safety
/// See [`super::Apply`].
pub(super) unsafe fn apply(mask: &Mask, block: u64, len: usize, x: *const f32, out: *mut f32) {
    let key = u64::from(mask.key[0]) | u64::from(mask.key[1]) << 32;
    for start in (0..len).step_by(4) {
        let index = block + start as u64 / 4;
        let words = philox(key, [index as u32, (index >> 32) as u32, mask.stream, 0]);
        for (i, word) in (start..len).zip(words) {
            // SAFETY: `i < len`.
            unsafe { *out.add(i) = if word < mask.threshold { 0.0 } else { *x.add(i) * mask.scale } };
        }
    }
}
