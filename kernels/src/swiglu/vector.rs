//! SwiGLU on vectors.

use crate::simd::{math, simd_fn};

simd_fn! {
    pub(super) fn forward<S>(s, gate: &[f32], up: &[f32], out: &mut [f32]) {
        let len = gate.len().min(up.len()).min(out.len());
        // SAFETY: every slice has `len` elements, and they do not overlap.
        unsafe {
            crate::simd::map2(s, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), len, |gate, up| s.mul(math::silu(s, gate), up));
        }
    }
}

simd_fn! {
    pub(super) fn backward<S>(s, gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let len = gate.len();
        assert!(up.len() == len && d_out.len() == len && d_gate.len() == len && d_up.len() == len);
        let one = s.splat(1.0);
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: all slices have `len` elements.
            unsafe {
                let g = s.load_up_to(gate.as_ptr().add(i), n);
                let u = s.load_up_to(up.as_ptr().add(i), n);
                let d = s.load_up_to(d_out.as_ptr().add(i), n);
                let sigmoid = math::sigmoid(s, g);
                let silu = s.mul(g, sigmoid);
                s.store_up_to(d_up.as_mut_ptr().add(i), n, s.mul(d, silu));
                let slope = s.fma(silu, s.sub(one, sigmoid), sigmoid);
                s.store_up_to(d_gate.as_mut_ptr().add(i), n, s.mul(s.mul(d, u), slope));
            }
        }
    }
}
